/**
 * A vCPU's VMCB as KVM fills it for a plain guest (Linux arch/x86/kvm/svm/svm.c, init_vmcb; reference svm.md 7.1), and typed access to
 * its page through the memory controller.
 *
 * Choices where the guest cannot tell the difference: accesses to CR0, CR3, CR4 and the debug registers are not intercepted
 * (KVM's reasons are lazy FPU and lazy debug registers), nor are #DB and #AC (KVM's reason is that a loop of them would hold the real CPU).
 * EFER.SVME is always set in the VMCB, as VMRUN demands, and hidden from everyone else. CD and NW of CR0 stay as the guest has them.
 *
 * Left out: AVIC, virtual GIF and NMI, LBR virtualisation, PAUSE filter. What SEV adds is sev/vcpu-sev.ts.
 */
import { CLEAN, EVENT, INTERCEPT, NESTED_CTL_NP_ENABLE, SAVE, VMCB } from '../../../abi/vmcb.ts';
import { EFER, PAT_DEFAULT, VECTOR } from '../../../abi/x86.ts';
import { pfnOf, type Spa } from '../../../base/address.ts';
import type { HostMemory } from '../../../hardware/memory/host-memory.ts';

const INTERCEPTED = [
  INTERCEPT.INTR,
  INTERCEPT.NMI,
  INTERCEPT.SMI,
  INTERCEPT.RDPMC,
  INTERCEPT.CPUID,
  INTERCEPT.INVD,
  INTERCEPT.INVLPGA,
  INTERCEPT.IOIO,
  INTERCEPT.MSR,
  INTERCEPT.TASK_SWITCH,
  INTERCEPT.SHUTDOWN,
  INTERCEPT.VMRUN,
  INTERCEPT.VMMCALL,
  INTERCEPT.VMLOAD,
  INTERCEPT.VMSAVE,
  INTERCEPT.STGI,
  INTERCEPT.CLGI,
  INTERCEPT.SKINIT,
  INTERCEPT.WBINVD,
  INTERCEPT.XSETBV,
  INTERCEPT.RDPRU,
  INTERCEPT.RSM,
  INTERCEPT.MONITOR,
  INTERCEPT.MWAIT,
  INTERCEPT.HLT,
  INTERCEPT.PAUSE,
];
const WRITE_CR8 = 1 << 24;
/** Number of the first exception's intercept. */
const EXCEPTION_BITS = 64;
const DEBUG_REGISTERS = 0xff_00ff;
const V_INTR_MASKING = 1 << 24;
const INTERRUPT_SHADOW = 1;
/** Attribute bit 9, above the selector. */
const CS_LONG = 1 << 25;
/** Offsets of the save area from the page's start. */
const at = (field: number): number => VMCB.SAVE_AREA + field;
const RIP = at(SAVE.RIP);

/** vmcb_mark_all_clean: all bits but the two that KVM always leaves clear. */
const ALL_CLEAN =
  CLEAN.INTERCEPTS |
  CLEAN.PERMISSIONS |
  CLEAN.ASID |
  CLEAN.NESTED |
  CLEAN.CR |
  CLEAN.DR |
  CLEAN.TABLES |
  CLEAN.SEGMENTS |
  CLEAN.LBR |
  CLEAN.AVIC;
const CLEAN_WORD = VMCB.CLEAN >>> 2;
const PAGE_BYTES = 4096;

/** Which clean bit a write to each word of the page clears. Words without a bit of their own (RIP, EVENTINJ, …) are read at each VMRUN. */
const DIRTIED = new Int32Array(PAGE_BYTES / 4);
const dirties = (bit: number, first: number, bytes: number): void => {
  DIRTIED.fill(bit, first >>> 2, (first + bytes) >>> 2);
};
dirties(CLEAN.INTERCEPTS, VMCB.INTERCEPT_CR, 0x40);
dirties(CLEAN.PERMISSIONS, VMCB.IOPM_BASE_PA, 16);
dirties(CLEAN.INTERCEPTS, VMCB.TSC_OFFSET, 8);
dirties(CLEAN.ASID, VMCB.ASID, 4);
dirties(CLEAN.NESTED, VMCB.NESTED_CTL, 8);
dirties(CLEAN.NESTED, VMCB.NCR3, 8);
dirties(CLEAN.LBR, VMCB.VIRT_EXT, 8);
// What VMLOAD loads (FS, GS, LDTR, TR, system-call MSRs) has no bit: SEGMENTS stands for it, since the core does VMLOAD's work at VMRUN.
dirties(CLEAN.SEGMENTS, at(SAVE.ES), 0xd0);
dirties(CLEAN.TABLES, at(SAVE.GDTR), 16);
dirties(CLEAN.TABLES, at(SAVE.IDTR), 16);
dirties(CLEAN.CR, at(SAVE.EFER), 8);
dirties(CLEAN.CR, at(SAVE.CR4), 0x18);
dirties(CLEAN.DR, at(SAVE.DR7), 0x10);
dirties(CLEAN.SEGMENTS, at(SAVE.STAR), SAVE.CR2 - SAVE.STAR);
dirties(CLEAN.NESTED, at(SAVE.G_PAT), 8);
dirties(CLEAN.LBR, at(SAVE.DBGCTL), 0x28);

/** One VMCB page. Offsets are those of abi/vmcb.ts, from the page's start. Setters clear the clean bit of what they write. */
export class Vmcb {
  readonly spa: Spa;
  readonly #words: Int32Array;
  readonly #longs: BigUint64Array;

  constructor(memory: HostMemory, spa: Spa) {
    this.spa = spa;
    const { buffer, byteOffset } = memory.page(pfnOf(spa));
    this.#words = new Int32Array(buffer, byteOffset, PAGE_BYTES / 4);
    this.#longs = new BigUint64Array(buffer, byteOffset, PAGE_BYTES / 8);
  }

  word(offset: number): number {
    return this.#words[offset >>> 2]!;
  }
  setWord(offset: number, value: number): void {
    const words = this.#words;
    words[offset >>> 2] = value;
    const dirty = DIRTIED[offset >>> 2]!;
    if (dirty !== 0) words[CLEAN_WORD]! &= ~dirty;
  }
  long(offset: number): bigint {
    return this.#longs[offset >>> 3]!;
  }
  setLong(offset: number, value: bigint): void {
    this.#longs[offset >>> 3] = value;
    this.#words[CLEAN_WORD]! &= ~DIRTIED[offset >>> 2]!;
  }
  /** A field of the save area. */
  save(field: number): bigint {
    return this.long(VMCB.SAVE_AREA + field);
  }
  setSave(field: number, value: bigint): void {
    this.setLong(VMCB.SAVE_AREA + field, value);
  }
  saveWord(field: number): number {
    return this.word(VMCB.SAVE_AREA + field);
  }
  setSaveWord(field: number, value: number): void {
    this.setWord(VMCB.SAVE_AREA + field, value);
  }
  /** After VMRUN: what is in the VMCB is what the processor has. */
  markAllClean(): void {
    this.#words[CLEAN_WORD] = ALL_CLEAN;
  }
  /** A u64 below 2^53. */
  number(offset: number): number {
    return (this.word(offset + 4) >>> 0) * 0x1_0000_0000 + (this.word(offset) >>> 0);
  }

  /** init_vmcb's control area; the rest of the page is left alone. */
  initControl(setup: { nestedRoot: Spa; ioPermissions: Spa; msrPermissions: Spa; asid: number }): void {
    for (const bit of INTERCEPTED) this.intercept(bit);
    this.setWord(VMCB.INTERCEPT_CR, WRITE_CR8);
    this.setWord(VMCB.INTERCEPT_EXCEPTION, (1 << VECTOR.UD) | (1 << VECTOR.MC));
    this.setLong(VMCB.IOPM_BASE_PA, BigInt(setup.ioPermissions));
    this.setLong(VMCB.MSRPM_BASE_PA, BigInt(setup.msrPermissions));
    this.setWord(VMCB.ASID, setup.asid);
    this.setWord(VMCB.INT_CTL, V_INTR_MASKING);
    this.setLong(VMCB.NESTED_CTL, BigInt(NESTED_CTL_NP_ENABLE));
    this.setLong(VMCB.NCR3, BigInt(setup.nestedRoot));
    this.setSave(SAVE.G_PAT, PAT_DEFAULT);
  }

  /** RIP goes behind the intercepted instruction; a shadow of STI or MOV SS ends (svm_skip_emulated_instruction). */
  skipInstruction(): void {
    const longs = this.#longs;
    longs[RIP >>> 3] = longs[VMCB.NEXT_RIP >>> 3]!;
    this.#words[VMCB.INT_STATE >>> 2]! &= ~INTERRUPT_SHADOW;
  }

  /** Has an event delivered at the next VMRUN. `info`: type, vector and ERROR_CODE_VALID as in EVENTINJ. */
  injectEvent(info: number, errorCode: number): void {
    this.setWord(VMCB.EVENTINJ + 4, errorCode);
    this.setWord(VMCB.EVENTINJ, EVENT.VALID | info);
  }
  /** Whether an event waits for the next VMRUN. */
  get eventPending(): boolean {
    return (this.word(VMCB.EVENTINJ) & EVENT.VALID) !== 0;
  }

  /** svm_set_intercept. `bit`: INTERCEPT. */
  intercept(bit: number): void {
    const word = (bit >>> 5) * 4;
    this.setWord(word, this.word(word) | (1 << (bit & 31)));
  }
  /** svm_clr_intercept */
  dropIntercept(bit: number): void {
    const word = (bit >>> 5) * 4;
    this.setWord(word, this.word(word) & ~(1 << (bit & 31)));
  }
  interceptException(vector: number): void {
    this.intercept(EXCEPTION_BITS + vector);
  }
  dropExceptionIntercept(vector: number): void {
    this.dropIntercept(EXCEPTION_BITS + vector);
  }
  /** Reads and writes of DR0 to DR7. */
  interceptDebugRegisters(): void {
    this.setWord(VMCB.INTERCEPT_DR, DEBUG_REGISTERS);
  }
  dropDebugRegisterIntercepts(): void {
    this.setWord(VMCB.INTERCEPT_DR, 0);
  }

  /** Current privilege level. */
  get cpl(): number {
    return (this.saveWord(SAVE.CPL & ~3) >>> 24) & 3;
  }
  get rflags(): number {
    return this.saveWord(SAVE.RFLAGS);
  }
  /** is_64_bit_mode: long mode and CS.L. */
  get in64BitMode(): boolean {
    return (this.saveWord(SAVE.EFER) & EFER.LMA) !== 0 && (this.saveWord(SAVE.CS) & CS_LONG) !== 0;
  }
}
