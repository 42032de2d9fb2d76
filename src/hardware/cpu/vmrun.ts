/**
 * VMRUN: from the VMCB into the core (APM volume 2, 15.5.1; the checks in the order of the reference's table of VMEXIT_INVALID causes). What the
 * host would do by VMLOAD around it (FS, GS, TR, LDTR, system-call MSRs) is done here as well.
 *
 * Clean bits (15.15): where the VMCB is the one that ran last and all bits of CACHED are set, only what has no clean bit is checked and loaded;
 * any clear bit makes it load and check everything. SEGMENTS stands for VMLOAD's fields too. Intercepts are read from the VMCB in any case.
 *
 * An encrypted guest is entered by vmsa.ts; an SEV-ES guest's registers are loaded each time, from its VMSA.
 *
 * Left out: AVIC, virtual NMIs, LBR virtualisation; guests without nested paging, paging without long mode and the PUSHF intercept end
 * in exit NOT_IMPLEMENTED (core.ts).
 */
import { CLEAN, EVENT, INTERCEPT, NESTED_CTL_NP_ENABLE, SAVE, TLB_CONTROL, VMCB } from '../../abi/vmcb.ts';
import { CR0, CR4, EFER, VECTOR } from '../../abi/x86.ts';
import { NotImplementedError } from '../../base/errors.ts';
import { DR7_ENABLES } from './debug.ts';
import { SHADOW } from './interrupts.ts';
import type { CoreParts } from './parts.ts';
import { copySaveArea } from './save-area.ts';
import { ATTRIBUTE } from './segments.ts';
import { STATE, USER_TLB } from './state.ts';
import { CR4_KNOWN } from './system/control-registers.ts';
import type { EncryptedState } from './vmsa.ts';

/** NP_ENABLE, SEV, SEV-ES. */
const NESTED_CTL_KNOWN = NESTED_CTL_NP_ENABLE | 6;
const EFER_KNOWN = EFER.SCE | EFER.LME | EFER.LMA | EFER.NXE | EFER.SVME | EFER.LMSLE | EFER.FFXSR;
/** Bits of a 64-bit field's high word above 48 physical address bits. */
const ABOVE_PHYSICAL = 0xffff0000 | 0;
const PHYSICAL_BYTES = 2 ** 48;
const IOPM_BYTES = 0x3000;
const MSRPM_BYTES = 0x2000;
const TYPE_MASK = 0x700;
const NOT_IN_LONG_MODE = new Set<number>([VECTOR.BR, VECTOR.OF]);
const PAT_TYPES = 0b11110011;
/** Groups of which the core keeps a copy. */
const CACHED =
  CLEAN.INTERCEPTS |
  CLEAN.PERMISSIONS |
  CLEAN.ASID |
  CLEAN.NESTED |
  CLEAN.CR |
  CLEAN.DR |
  CLEAN.TABLES |
  CLEAN.SEGMENTS |
  CLEAN.LBR;

export class GuestEntry {
  readonly #parts: CoreParts;
  readonly #words: Int32Array;
  readonly #encrypted: EncryptedState;
  /** What the TLBs belong to. */
  #asid = 0;
  #nestedRoot = -1;
  #vmcb = -1;
  /** The VMCB whose checked copy the core has. */
  #held = -1;

  constructor(parts: CoreParts, encrypted: EncryptedState) {
    this.#parts = parts;
    this.#words = parts.memory.words;
    this.#encrypted = encrypted;
  }

  /** Loads the guest. False: a check failed, nothing is loaded. */
  load(vmcb: number): boolean {
    const { intercepts, registers } = this.#parts;
    const words = this.#words;
    const control = vmcb >>> 2;
    intercepts.vmcb = vmcb;
    if (vmcb !== this.#held || (words[control + (VMCB.CLEAN >> 2)]! & CACHED) !== CACHED)
      return this.#loadAll(vmcb);
    const flush = words[control + (VMCB.TLB_CONTROL >> 2)]! & 7;
    const event = words[control + (VMCB.EVENTINJ >> 2)]!;
    if ((flush !== 0 && !isLegalFlush(flush)) || (event < 0 && !isLegalEvent(event))) return this.#refuse();
    if (flush !== 0) this.#flush();
    const save = control + (VMCB.SAVE_AREA >> 2);
    const held = (registers.state + STATE.SAVE) >>> 2;
    words[held + (SAVE.CR2 >> 2)] = words[save + (SAVE.CR2 >> 2)]!;
    words[held + (SAVE.CR2 >> 2) + 1] = words[save + (SAVE.CR2 >> 2) + 1]!;
    this.#loadUncached(save);
    return true;
  }

  #loadAll(vmcb: number): boolean {
    if (!this.#controlIsValid()) return this.#refuse();
    const save = this.#encrypted.enter(vmcb);
    if (save < 0 || !this.#guestIsValid(save)) return this.#refuse();
    this.#loadControl(vmcb);
    this.#loadGuest(save);
    this.#held = vmcb;
    if (this.#parts.guest.es) {
      this.#encrypted.loadRegisters();
      this.#held = -1;
    }
    return true;
  }

  #refuse(): boolean {
    this.#held = -1;
    return false;
  }

  /** Loads the guest for an instruction of the host's emulator: nothing is checked, and no stale translation is used. */
  reload(vmcb: number): void {
    this.#parts.intercepts.vmcb = vmcb;
    if (vmcb !== this.#held) this.#held = -1;
    this.#loadControl(vmcb);
    this.#loadGuest(vmcb + VMCB.SAVE_AREA);
    this.#flush();
  }

  /** What the core holds is not what was stored: the next VMRUN loads everything. */
  forget(): void {
    this.#held = -1;
  }

  #flush(): void {
    this.#parts.tlb.flush();
    this.#parts.nested.flush();
  }

  #controlIsValid(): boolean {
    const { intercepts } = this.#parts;
    if (!intercepts.has(INTERCEPT.VMRUN)) return false;
    if (intercepts.has(INTERCEPT.IOIO) && !this.#mapFits(VMCB.IOPM_BASE_PA, IOPM_BYTES)) return false;
    if (intercepts.has(INTERCEPT.MSR) && !this.#mapFits(VMCB.MSRPM_BASE_PA, MSRPM_BYTES)) return false;
    if (intercepts.word(VMCB.ASID) === 0) return false;
    if (!isLegalFlush(intercepts.word(VMCB.TLB_CONTROL) & 7)) return false;
    if (!isLegalEvent(intercepts.word(VMCB.EVENTINJ))) return false;
    return (intercepts.word(VMCB.NCR3 + 4) & ABOVE_PHYSICAL) === 0;
  }

  #mapFits(field: number, bytes: number): boolean {
    const { intercepts } = this.#parts;
    const high = intercepts.word(field + 4) >>> 0;
    const base = high * 0x1_0000_0000 + ((intercepts.word(field) & ~0xfff) >>> 0);
    return base + bytes <= PHYSICAL_BYTES;
  }

  #guestIsValid(save: number): boolean {
    const words = this.#words;
    const word = (field: number): number => words[(save + field) >>> 2]!;
    const efer = word(SAVE.EFER);
    const cr0 = word(SAVE.CR0);
    const cr4 = word(SAVE.CR4);
    if ((efer & EFER.SVME) === 0) return false;
    if ((cr0 & CR0.CD) === 0 && (cr0 & CR0.NW) !== 0) return false;
    if (word(SAVE.CR0 + 4) !== 0) return false;
    if ((word(SAVE.CR3 + 4) & ABOVE_PHYSICAL) !== 0) return false;
    if (word(SAVE.CR4 + 4) !== 0 || (cr4 & ~CR4_KNOWN) !== 0) return false;
    if (word(SAVE.EFER + 4) !== 0 || (efer & ~EFER_KNOWN) !== 0) return false;
    if (word(SAVE.DR6 + 4) !== 0 || word(SAVE.DR7 + 4) !== 0) return false;
    const longMode = (efer & EFER.LME) !== 0 && (cr0 & CR0.PG) !== 0;
    if (longMode && ((cr4 & CR4.PAE) === 0 || (cr0 & CR0.PE) === 0)) return false;
    const code = word(SAVE.CS) >>> 16;
    if (longMode && (code & ATTRIBUTE.L) !== 0 && (code & ATTRIBUTE.D) !== 0) return false;
    const { registers } = this.#parts;
    // What the mirror holds has been checked.
    const samePat =
      word(SAVE.G_PAT) === registers.saveWord(SAVE.G_PAT) &&
      word(SAVE.G_PAT + 4) === registers.saveWord(SAVE.G_PAT + 4);
    return samePat || (isLegalPat(word(SAVE.G_PAT)) && isLegalPat(word(SAVE.G_PAT + 4)));
  }

  #loadControl(vmcb: number): void {
    const { intercepts, nested } = this.#parts;
    if ((intercepts.word(VMCB.NESTED_CTL) & NESTED_CTL_NP_ENABLE) === 0) {
      throw new NotImplementedError('a guest without nested paging');
    }
    if ((intercepts.word(VMCB.NESTED_CTL) & ~NESTED_CTL_KNOWN) !== 0) {
      throw new NotImplementedError('controls of the VMCB at 0x90 beyond nested paging, SEV and SEV-ES');
    }
    if (intercepts.has(INTERCEPT.PUSHF)) throw new NotImplementedError('the PUSHF intercept');
    const root = (intercepts.word(VMCB.NCR3 + 4) & 0xffff) * 0x100000 + (intercepts.word(VMCB.NCR3) >>> 12);
    const asid = intercepts.word(VMCB.ASID);
    const flush = (intercepts.word(VMCB.TLB_CONTROL) & 7) !== TLB_CONTROL.NOTHING;
    nested.root = root;
    if (flush || asid !== this.#asid || root !== this.#nestedRoot || vmcb !== this.#vmcb) this.#flush();
    this.#asid = asid;
    this.#nestedRoot = root;
    this.#vmcb = vmcb;
  }

  #loadGuest(save: number): void {
    const { registers, tlb } = this.#parts;
    const words = this.#words;
    const mirror = registers.state + STATE.SAVE;
    const at = save >>> 2;
    const held = mirror >>> 2;
    const efer = SAVE.EFER >> 2;
    const lma = (words[at + efer]! & EFER.LME) !== 0 && (words[at + (SAVE.CR0 >> 2)]! & CR0.PG) !== 0;
    const effective = lma ? words[at + efer]! | EFER.LMA : words[at + efer]! & ~EFER.LMA;
    const changed =
      words[at + (SAVE.CR3 >> 2)] !== words[held + (SAVE.CR3 >> 2)] ||
      words[at + (SAVE.CR3 >> 2) + 1] !== words[held + (SAVE.CR3 >> 2) + 1] ||
      words[at + (SAVE.CR0 >> 2)] !== words[held + (SAVE.CR0 >> 2)] ||
      words[at + (SAVE.CR4 >> 2)] !== words[held + (SAVE.CR4 >> 2)] ||
      effective !== words[held + efer];
    if (changed) tlb.flush();
    copySaveArea(this.#parts.memory, save, mirror);
    registers.changed = effective !== words[at + efer];
    registers.modeKnown = false;
    words[held + efer] = effective;
    if (!lma && (words[at + (SAVE.CR0 >> 2)]! & CR0.PG) !== 0)
      throw new NotImplementedError('paging without long mode');
    const cpl = (words[held + ((SAVE.CPL & ~3) >> 2)]! >>> 24) & 3;
    registers.setWord(STATE.CPL, cpl);
    registers.setWord(STATE.TLB_SET, cpl === 3 ? USER_TLB : 0);
    registers.rflags = words[at + (SAVE.RFLAGS >> 2)]!;
    registers.storedFlags = words[at + (SAVE.RFLAGS >> 2)]!;
    this.#loadUncached(at);
  }

  /** RIP, RSP, RAX, RFLAGS and the interrupt shadow. `save`: word index of the save area. */
  #loadUncached(save: number): void {
    const { registers } = this.#parts;
    const words = this.#words;
    const state = registers.state >>> 2;
    const { longs } = registers;
    longs[(state + (STATE.RIP >> 2)) >>> 1] = longs[(save + (SAVE.RIP >> 2)) >>> 1]!;
    longs[(state + (RSP >> 2)) >>> 1] = longs[(save + (SAVE.RSP >> 2)) >>> 1]!;
    longs[(state + (STATE.GPR >> 2)) >>> 1] = longs[(save + (SAVE.RAX >> 2)) >>> 1]!;
    const flags = words[save + (SAVE.RFLAGS >> 2)]!;
    if (flags !== registers.storedFlags) registers.rflags = flags;
    words[state + (STATE.INTERRUPT_SHADOW >> 2)] =
      this.#parts.intercepts.word(VMCB.INT_STATE) & SHADOW.INTERRUPTS;
    words[state + (STATE.SHADOW_RETIRED >> 2)] = words[state + (STATE.RETIRED >> 2)]!;
    const { debug } = this.#parts;
    const control = words[state + ((STATE.SAVE + SAVE.DR7) >> 2)]!;
    if (debug.armed || (control & DR7_ENABLES) !== 0) debug.load();
  }
}

const RSP = STATE.GPR + 8 * 4;

function isLegalFlush(control: number): boolean {
  const { NOTHING, FLUSH_ALL, FLUSH_ASID, FLUSH_ASID_NON_GLOBAL } = TLB_CONTROL;
  return (
    control === NOTHING ||
    control === FLUSH_ALL ||
    control === FLUSH_ASID ||
    control === FLUSH_ASID_NON_GLOBAL
  );
}

/** Types of EVENTINJ: an exception is no NMI, one of 32, and one that 64-bit mode has. */
function isLegalEvent(event: number): boolean {
  if ((event & EVENT.VALID) === 0) return true;
  const vector = event & 0xff;
  switch (event & TYPE_MASK) {
    case EVENT.TYPE_INTR:
    case EVENT.TYPE_NMI:
    case EVENT.TYPE_SOFTWARE:
      return true;
    case EVENT.TYPE_EXCEPTION:
      return vector !== VECTOR.NMI && vector < 32 && !NOT_IN_LONG_MODE.has(vector);
    default:
      return false;
  }
}

/** Four memory types: 0, 1, 4 to 7. */
function isLegalPat(word: number): boolean {
  for (let at = 0; at < 32; at += 8) {
    const type = (word >>> at) & 0xff;
    if (type > 7 || ((PAT_TYPES >>> type) & 1) === 0) return false;
  }
  return true;
}
