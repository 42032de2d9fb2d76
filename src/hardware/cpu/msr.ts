/**
 * Model-specific registers that the core itself has (APM volume 2, appendix A), read and written by a guest where the host does not
 * intercept them. Any other MSR is #GP. `undefined` and `false` mean #GP.
 */
import { SAVE, VMCB } from '../../abi/vmcb.ts';
import { CR0, EFER, MSR } from '../../abi/x86.ts';
import { isCanonicalAddress } from './memory-access.ts';
import type { CoreParts } from './parts.ts';

const U32 = 0xffffffffn;
const EFER_KNOWN = BigInt(EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE | EFER.SVME | EFER.FFXSR);
const PAT_TYPES = new Set([0, 1, 4, 5, 6, 7]);

/** MSRs that are a field of the save area, and whether they hold an address. */
const FIELDS = new Map<number, { field: number; address: boolean }>([
  [MSR.STAR, { field: SAVE.STAR, address: false }],
  [MSR.LSTAR, { field: SAVE.LSTAR, address: true }],
  [MSR.CSTAR, { field: SAVE.CSTAR, address: true }],
  [MSR.SFMASK, { field: SAVE.SFMASK, address: false }],
  [MSR.FS_BASE, { field: SAVE.FS + 8, address: true }],
  [MSR.GS_BASE, { field: SAVE.GS + 8, address: true }],
  [MSR.KERNEL_GS_BASE, { field: SAVE.KERNEL_GS_BASE, address: true }],
  [MSR.SYSENTER_CS, { field: SAVE.SYSENTER_CS, address: false }],
  [MSR.SYSENTER_ESP, { field: SAVE.SYSENTER_ESP, address: true }],
  [MSR.SYSENTER_EIP, { field: SAVE.SYSENTER_EIP, address: true }],
]);

export class MsrFile {
  /** TSC_AUX, 32 bits. VMRUN moves that of an SEV-ES guest where the chip says so (vmsa.ts), and no other. */
  tscAux = 0n;
  readonly #parts: CoreParts;
  readonly #tsc: () => bigint;

  /** `tsc`: the core's time stamp counter, without the guest's offset. */
  constructor(parts: CoreParts, tsc: () => bigint) {
    this.#parts = parts;
    this.#tsc = tsc;
  }

  /** The guest's time stamp counter. */
  get timeStamp(): bigint {
    const { intercepts } = this.#parts;
    const low = BigInt(intercepts.word(VMCB.TSC_OFFSET) >>> 0);
    const offset = low | (BigInt(intercepts.word(VMCB.TSC_OFFSET + 4) >>> 0) << 32n);
    return BigInt.asUintN(64, this.#tsc() + offset);
  }

  read(msr: number): bigint | undefined {
    const { registers } = this.#parts;
    const known = FIELDS.get(msr);
    if (known) return registers.save(known.field);
    switch (msr) {
      case MSR.EFER:
        return registers.save(SAVE.EFER);
      case MSR.PAT:
        return registers.save(SAVE.G_PAT);
      case MSR.TSC:
        return this.timeStamp;
      case MSR.TSC_AUX:
        return this.tscAux;
      case MSR.SEV_STATUS:
        return this.#parts.guest.status;
      case MSR.GHCB:
        return this.#parts.guest.es ? this.#parts.guest.ghcb : undefined;
      default:
        return undefined;
    }
  }

  write(msr: number, value: bigint): boolean {
    const { registers } = this.#parts;
    const known = FIELDS.get(msr);
    if (known) {
      if (known.address && !isCanonicalAddress(value)) return false;
      registers.setSave(known.field, msr === MSR.SFMASK ? value & U32 : value);
      return true;
    }
    switch (msr) {
      case MSR.EFER:
        return this.#writeEfer(value);
      case MSR.PAT:
        for (let at = 0n; at < 64n; at += 8n) if (!PAT_TYPES.has(Number((value >> at) & 0xffn))) return false;
        registers.setSave(SAVE.G_PAT, value);
        return true;
      case MSR.GHCB:
        if (!this.#parts.guest.es) return false;
        this.#parts.guest.ghcb = value;
        return true;
      case MSR.TSC_AUX:
        this.tscAux = value & U32;
        return true;
      default:
        return false;
    }
  }

  /** LMA is the processor's; LME stays while paging is on. A change of NXE changes translations. */
  #writeEfer(value: bigint): boolean {
    const { registers, tlb } = this.#parts;
    const old = registers.save(SAVE.EFER);
    if ((value & ~EFER_KNOWN) !== 0n) return false;
    const paging = (registers.saveWord(SAVE.CR0) & CR0.PG) !== 0;
    if (paging && ((old ^ value) & BigInt(EFER.LME)) !== 0n) return false;
    const kept = BigInt(EFER.LMA);
    registers.setSave(SAVE.EFER, (value & ~kept) | (old & kept));
    if (((old ^ value) & BigInt(EFER.NXE)) !== 0n) tlb.flush();
    return true;
  }
}
