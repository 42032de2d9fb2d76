/**
 * An SNP guest on our kernel, put together by ioctls as a VMM does it: 1 MiB of private memory at 0 with page tables, a shared window at SHARED, a GHCB at GHCB. Code is
 * assembled at CODE; the stack grows down from STACK. Numbers are written out.
 */
import { afterEach, expect } from 'vitest';
import type { Hva } from '../../../src/base/address.ts';
import { type Entropy, seededEntropy } from '../../../src/base/entropy.ts';
import { Chip, type ChipGeneration } from '../../../src/hardware/chip.ts';
import {
  createKernel,
  type EarlyForm,
  type Kernel,
  type Personality,
} from '../../../src/kernel/kvm/index.ts';
import type { Vcpu } from '../../../src/kernel/kvm/vcpu.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import type { Process } from '../../../src/kernel/process.ts';
import { assemble, type iced } from '../../hardware/cpu/assembler.ts';

type Instruction = InstanceType<typeof iced.Instruction>;

export const PML4 = 0x1000;
export const PT = 0x4000;
export const GDT = 0x5000;
export const IDT = 0x6000;
export const CODE = 0x8000;
export const HANDLER = 0x9000;
export const STACK = 0xb000;
export const SECRETS = 0xc000;
export const DATA = 0x10000;
/** Pages that the guest maps without the C-bit. */
export const GHCB = 0x40000;
export const SHARED = 0x41000;
/** Behind what is launched: the guest has to ask for these. */
export const FRESH = 0x80000;
const RAM = 0x200000;
const LAUNCHED = 0x40000;
const C_BIT = 1n << 51n;
export const POLICY = 0x30000n;

const open: SnpVm[] = [];
afterEach(() => {
  for (const vm of open.splice(0)) vm.close();
});

export interface SnpOptions {
  readonly kernel?: Personality;
  readonly early?: readonly EarlyForm[];
  readonly generation?: ChipGeneration;
  /** Instead of one of that generation. */
  readonly chip?: Chip;
  /** Where the secure processor's keys come from. */
  readonly entropy?: Entropy;
  readonly memory?: number;
  readonly gmemHuge?: boolean;
  /** The test closes it itself. */
  readonly keepOpen?: boolean;
}

export class SnpVm {
  readonly kernel: Kernel;
  readonly process: Process;
  readonly chip: Chip;
  readonly vm: Vm;
  readonly sevFd: number;
  readonly hva: Hva;
  readonly gmem: number;
  vcpu!: Vcpu;
  /** What the guest will find at its pages, before the launch. */
  readonly image = new Uint8Array(LAUNCHED);
  #closed = false;

  constructor(options: SnpOptions = {}) {
    this.chip =
      options.chip ?? new Chip({ generation: options.generation ?? 'milan', entropy: seededEntropy(3) });
    this.kernel = createKernel({
      memory: options.memory ?? 32 << 20,
      chip: this.chip,
      entropy: options.entropy ?? seededEntropy(5),
      ...(options.kernel && { kernel: options.kernel }),
      ...(options.early && { early: options.early }),
      ...(options.gmemHuge && { gmemHuge: true }),
    });
    this.process = this.kernel.newProcess('vmm');
    if (options.keepOpen !== true) open.push(this);
    this.sevFd = this.process.openSev();
    this.vm = this.process.openKvm().createVm(4) as Vm;
    this.vm.enableCap({ cap: 201, args: [1n << 12n] });
    this.gmem = this.vm.createGuestMemfd({ size: BigInt(RAM), flags: 0n });
    this.hva = this.process.memory.mmap({ length: RAM, protection: 3, flags: 0x22 });
    this.vm.setUserMemoryRegion2({
      slot: 0,
      flags: 4,
      guestPhysAddr: 0n,
      memorySize: BigInt(RAM),
      userspaceAddr: BigInt(this.hva),
      guestMemfd: this.gmem,
      guestMemfdOffset: 0n,
    });
    this.#tables();
  }

  /** INIT2, with a vCPU. */
  init(request: { vmsaFeatures?: bigint; ghcbVersion?: number; certs?: boolean } = {}): this {
    const { vmsaFeatures = 0n, ghcbVersion = 2, certs = false } = request;
    this.vm.memoryEncryptOp({ id: 22, sevFd: this.sevFd, data: { vmsaFeatures, flags: 0, ghcbVersion } });
    if (certs) this.vm.memoryEncryptOp({ id: 103, sevFd: this.sevFd });
    this.vcpu = this.vm.createVcpu(0);
    this.#registers();
    return this;
  }

  start(policy = POLICY): this {
    this.vm.memoryEncryptOp({
      id: 100,
      sevFd: this.sevFd,
      data: { policy, gosvw: new Uint8Array(16), flags: 0 },
    });
    return this;
  }

  load(program: readonly Instruction[], at = CODE): this {
    this.image.set(assemble(program, at), at);
    return this;
  }

  /** The image becomes the guest's: pages of `type` from `at` on. Returns what was left to do. */
  update(type = 1, at = 0, bytes = LAUNCHED): bigint {
    this.process.memory.write((this.hva + at) as Hva, this.image.subarray(at, at + bytes));
    this.attributes(at, bytes, 8n);
    const data = {
      gfnStart: BigInt(at / 4096),
      uaddr: BigInt(this.hva + at),
      len: BigInt(bytes),
      type,
      flags: 0,
    };
    this.vm.memoryEncryptOp({ id: 101, sevFd: this.sevFd, data });
    return data.len;
  }

  finish(): this {
    this.vm.memoryEncryptOp({
      id: 102,
      sevFd: this.sevFd,
      data: { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0 },
    });
    return this;
  }

  /** All of it. */
  launch(program: readonly Instruction[], request: Parameters<this['init']>[0] = {}): this {
    this.init(request).start().load(program);
    this.update(1, 0, SECRETS);
    this.update(5, SECRETS, 4096);
    this.update(1, SECRETS + 4096, LAUNCHED - SECRETS - 4096);
    return this.finish();
  }

  attributes(at: number, bytes: number, attributes: bigint): void {
    this.vm.setMemoryAttributes({ address: BigInt(at), size: BigInt(bytes), attributes, flags: 0n });
  }

  /** What the VMM sees at a gpa. */
  read(gpa: number, bytes: number): Uint8Array {
    const into = new Uint8Array(bytes);
    this.process.memory.read((this.hva + gpa) as Hva, into);
    return into;
  }
  long(gpa: number): bigint {
    return new DataView(this.read(gpa, 8).buffer).getBigUint64(0, true);
  }

  /** May be called by hand as well. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.process.exit();
    expect(this.kernel.psp!.leakedPages).toBe(0);
    const frames = this.kernel.memory.leaks().filter(({ owner }) => owner !== 'psp');
    expect(frames).toEqual([]);
    this.kernel.close();
  }

  #tables(): void {
    const view = new DataView(this.image.buffer);
    const put = (at: number, value: bigint) => view.setBigUint64(at, value, true);
    put(PML4, 0x2007n | C_BIT);
    put(0x2000, 0x3007n | C_BIT);
    put(0x3000, BigInt(PT) | 7n | C_BIT);
    for (let page = 0; page < 512; page++) {
      const isShared = page >= GHCB / 4096 && page < FRESH / 4096;
      put(PT + page * 8, BigInt(page * 4096) | 3n | (isShared ? 0n : C_BIT));
    }
    put(GDT + 8, 0x00af9a000000ffffn);
    put(GDT + 16, 0x00cf92000000ffffn);
    const gate = (vector: number, handler: number) => {
      put(
        IDT + vector * 16,
        BigInt(handler & 0xffff) | (8n << 16n) | (0x8e00n << 32n) | (BigInt(handler >>> 16) << 48n),
      );
    };
    gate(29, HANDLER);
    gate(14, HANDLER + 0x100);
    gate(13, HANDLER + 0x200);
  }

  #registers(): void {
    const { vcpu } = this;
    const sregs = vcpu.getSregs();
    const segment = (selector: number, type: number, long: number) => ({
      base: 0n,
      limit: 0xffffffff,
      selector,
      type,
      present: 1,
      dpl: 0,
      db: long === 1 ? 0 : 1,
      s: 1,
      l: long,
      g: 1,
      avl: 0,
      unusable: 0,
    });
    const data = segment(16, 3, 0);
    vcpu.setSregs({
      ...sregs,
      cs: segment(8, 11, 1),
      ds: data,
      es: data,
      fs: data,
      gs: data,
      ss: data,
      gdt: { base: BigInt(GDT), limit: 23 },
      idt: { base: BigInt(IDT), limit: 0xfff },
      cr0: 0x80010033n,
      cr3: BigInt(PML4),
      cr4: 0x6a0n,
      efer: 0xd01n,
    });
    vcpu.setRegs({ ...vcpu.getRegs(), rip: BigInt(CODE), rsp: BigInt(STACK), rflags: 2n });
  }
}
