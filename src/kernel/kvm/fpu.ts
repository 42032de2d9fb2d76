/**
 * x87, SSE and XCR0 of a vCPU for user space (Linux arch/x86/kvm/x86.c: kvm_arch_vcpu_ioctl_get_fpu, …_set_fpu, kvm_vcpu_ioctl_x86_get_xsave2, …_set_xsave,
 * …_get_xcrs, __kvm_set_xcr; arch/x86/kernel/fpu/xstate.c: copy_uabi_to_xstate). The registers are the core's, which has them between two
 * runs. KVM_GET_FPU does not tell MXCSR and KVM_SET_FPU does not set it, as in Linux.
 */
import { kvm_xcrs } from '../../abi/kvm-structs.ts';
import { checkEntries } from '../../abi/layout.ts';
import { LinuxError } from '../../base/errors.ts';
import type { Fpu, Xcrs } from '../interface.ts';
import type { GuestCore } from './svm/guest-core.ts';

const X87 = 1n;
const SSE = 2n;
/** XCR0 bits that a guest can have. */
export const SUPPORTED_XCR0 = X87 | SSE;
/** The image: FXSAVE's 512 bytes, then the header. */
const AT = {
  FCW: 0,
  FSW: 2,
  FTW: 4,
  FOP: 6,
  RIP: 8,
  RDP: 16,
  MXCSR: 24,
  MXCSR_MASK: 28,
  ST: 32,
  XMM: 160,
} as const;
const SOFTWARE_XCR0 = 464;
const XSTATE_BV = 512;
const XCOMP_BV = 520;
const HEADER_RESERVED = 528;
const HEADER_END = 576;
const X87_BYTES = 160;
const XMM_BYTES = 256;
const REGISTER = 16;
/** KVM_CAP_XSAVE2: what GET_XSAVE2 gives, the least that Linux says. */
export const XSAVE_BYTES = 4096;
const FCW_INITIAL = 0x37f;
const MXCSR_INITIAL = 0x1f80;
const MXCSR_BITS = 0xffff;
const MAX_XCRS = 16;
const XCR0 = 0;

export class GuestFpu {
  readonly #core: () => GuestCore;

  constructor(core: () => GuestCore) {
    this.#core = core;
  }

  #readX87(): DataView<ArrayBuffer> {
    const x87 = new Uint8Array(X87_BYTES);
    this.#core().readX87(x87);
    return new DataView(x87.buffer);
  }

  /** KVM_GET_FPU */
  get(): Fpu {
    const x87 = this.#readX87();
    const registers = (from: Uint8Array, count: number): Uint8Array[] =>
      Array.from({ length: count }, (_, i) => from.slice(i * REGISTER, (i + 1) * REGISTER));
    return {
      fpr: registers(new Uint8Array(x87.buffer, AT.ST), 8),
      fcw: x87.getUint16(AT.FCW, true),
      fsw: x87.getUint16(AT.FSW, true),
      ftwx: x87.getUint8(AT.FTW),
      lastOpcode: x87.getUint16(AT.FOP, true),
      lastIp: x87.getBigUint64(AT.RIP, true),
      lastDp: x87.getBigUint64(AT.RDP, true),
      xmm: registers(this.#core().xmm, 16),
      mxcsr: 0,
    };
  }

  /** KVM_SET_FPU */
  set(fpu: Fpu): void {
    const x87 = new DataView(new ArrayBuffer(X87_BYTES));
    const put = (into: Uint8Array, registers: readonly Uint8Array[], count: number): void => {
      for (let i = 0; i < count; i++)
        into.set((registers[i] ?? new Uint8Array(REGISTER)).subarray(0, REGISTER), i * REGISTER);
    };
    put(new Uint8Array(x87.buffer, AT.ST), fpu.fpr, 8);
    x87.setUint16(AT.FCW, fpu.fcw, true);
    x87.setUint16(AT.FSW, fpu.fsw, true);
    x87.setUint8(AT.FTW, fpu.ftwx);
    x87.setUint16(AT.FOP, fpu.lastOpcode, true);
    x87.setBigUint64(AT.RIP, fpu.lastIp, true);
    x87.setBigUint64(AT.RDP, fpu.lastDp, true);
    this.#core().writeX87(new Uint8Array(x87.buffer));
    put(this.#core().xmm, fpu.xmm, 16);
  }

  /** KVM_GET_XSAVE and KVM_GET_XSAVE2. */
  image(): Uint8Array {
    const bytes = new Uint8Array(XSAVE_BYTES);
    const view = new DataView(bytes.buffer);
    const { xmm, mxcsr } = this.#core();
    const registers = this.#readX87();
    bytes.set(new Uint8Array(registers.buffer));
    bytes.set(xmm, AT.XMM);
    view.setUint32(AT.MXCSR, mxcsr, true);
    view.setUint32(AT.MXCSR_MASK, MXCSR_BITS, true);
    view.setBigUint64(SOFTWARE_XCR0, SUPPORTED_XCR0, true);
    const x87 = isInitial(registers) ? 0n : X87;
    const sse = mxcsr === MXCSR_INITIAL && xmm.every((byte) => byte === 0) ? 0n : SSE;
    view.setBigUint64(XSTATE_BV, x87 | sse, true);
    return bytes;
  }

  /** KVM_SET_XSAVE. Errors: EINVAL for features that are not there, the compacted form, reserved bytes, bits of MXCSR. */
  setImage(image: Uint8Array): void {
    const bytes = image.slice(0, XSAVE_BYTES);
    const view = new DataView(bytes.buffer);
    const features = view.getBigUint64(XSTATE_BV, true);
    if ((features & ~SUPPORTED_XCR0) !== 0n) invalid(`XSTATE_BV 0x${features.toString(16)}`);
    if (view.getBigUint64(XCOMP_BV, true) !== 0n) invalid('XCOMP_BV is not 0');
    if (bytes.subarray(HEADER_RESERVED, HEADER_END).some((byte) => byte !== 0))
      invalid('reserved bytes of the header');
    const mxcsr = view.getUint32(AT.MXCSR, true);
    const core = this.#core();
    if (features !== 0n) {
      if ((mxcsr & ~MXCSR_BITS) !== 0) invalid(`MXCSR 0x${mxcsr.toString(16)}`);
      core.mxcsr = mxcsr;
    }
    if ((features & X87) === 0n) core.writeX87(INITIAL_X87);
    else core.writeX87(bytes.subarray(0, X87_BYTES));
    if ((features & SSE) === 0n) core.xmm.fill(0);
    else core.xmm.set(bytes.subarray(AT.XMM, AT.XMM + XMM_BYTES));
  }

  /** KVM_GET_XCRS */
  getXcrs(): Xcrs {
    return { flags: 0, xcrs: [{ xcr: XCR0, value: this.#core().xcr0 }] };
  }

  /** KVM_SET_XCRS: the first XCR0 counts. Errors: EINVAL for flags, more than 16, and a value that XSETBV would refuse. */
  setXcrs({ flags, xcrs }: Xcrs): void {
    if (flags !== 0 || xcrs.length > MAX_XCRS)
      throw new LinuxError('EINVAL', `KVM_SET_XCRS: flags ${flags}, ${xcrs.length} registers`);
    const entry = xcrs.find(({ xcr }) => xcr === XCR0);
    if (entry !== undefined && !this.setXcr0(entry.value))
      throw new LinuxError('EINVAL', `KVM_SET_XCRS: XCR0 0x${entry.value.toString(16)}`);
  }

  /** __kvm_set_xcr. False: #GP. */
  setXcr0(value: bigint): boolean {
    if ((value & X87) === 0n || (value & ~SUPPORTED_XCR0) !== 0n) return false;
    this.#core().xcr0 = value;
    return true;
  }
}

/** No field of `struct kvm_xcrs` holds more. What comes after the 16th has none. */
export function checkXcrs({ flags, xcrs }: Xcrs): void {
  checkEntries(xcrs, 'kvm_xcrs.xcrs');
  kvm_xcrs.check({ nr_xcrs: xcrs.length, flags, xcrs: xcrs.slice(0, MAX_XCRS) });
}

/** After FNINIT, with empty registers of 0. */
const INITIAL_X87 = new Uint8Array(X87_BYTES);
INITIAL_X87.set([FCW_INITIAL & 0xff, FCW_INITIAL >> 8], AT.FCW);

const isInitial = (x87: DataView<ArrayBuffer>): boolean =>
  new Uint8Array(x87.buffer).every((byte, i) => byte === INITIAL_X87[i]);

function invalid(what: string): never {
  throw new LinuxError('EINVAL', `KVM_SET_XSAVE: ${what}`);
}
