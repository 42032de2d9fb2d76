/**
 * Data accesses that generated code cannot do by itself: TLB misses, accesses that cross a page, stores into frames with decoded
 * code, MMIO while an instruction is emulated; and the accesses that the slow path makes for the processor (descriptor tables, stacks).
 * Both pages of a crossing access are translated before anything is read or written. What a data address must look like: APM
 * volume 2, 5.3.1 (canonical form).
 */
import { NPF, SAVE, VMEXIT } from '../../abi/vmcb.ts';
import { CR0, CR4, RFLAGS, VECTOR } from '../../abi/x86.ts';
import type { Gpa } from '../../base/address.ts';
import { FRAME_FLAG } from '../memory/host-memory.ts';
import { ACCESS, PRIVILEGE } from './access.ts';
import type { DebugUnit } from './debug.ts';
import type { Events } from './events.ts';
import { faultGpa, type MmioStep } from './mmio.ts';
import type { PageWalker } from './page-walk.ts';
import type { Registers } from './registers.ts';
import { LEAVE, STATE, USER_TLB } from './state.ts';
import type { CoreTlb } from './tlb.ts';

/** No LEAVE code: the access belongs to the bus. */
const TO_BUS = 64;
const PAGE = 4096;

export interface AccessMemory {
  readonly bytes: Uint8Array;
  readonly frameFlags: Uint8Array;
}

/** Hears of stores into frames that hold decoded code. */
export type CodeWritten = (frame: number, offset: number, bytes: number) => void;

/** Where one part of an access lies. */
class Part {
  /** System physical address, or −1 where the bus has it. */
  address = 0;
  gpa = 0 as Gpa;
}

export class MemoryAccess {
  /** Set while an instruction is emulated. */
  step: MmioStep | undefined;
  readonly #bytes: Uint8Array;
  readonly #frameFlags: Uint8Array;
  readonly #registers: Registers;
  readonly #events: Events;
  readonly #walker: PageWalker;
  readonly #tlb: CoreTlb;
  readonly #debug: DebugUnit;
  readonly #codeWritten: CodeWritten;
  readonly #first = new Part();
  readonly #second = new Part();
  readonly #data: number;

  constructor(parts: {
    memory: AccessMemory;
    registers: Registers;
    events: Events;
    walker: PageWalker;
    tlb: CoreTlb;
    debug: DebugUnit;
    codeWritten: CodeWritten;
  }) {
    this.#debug = parts.debug;
    this.#bytes = parts.memory.bytes;
    this.#frameFlags = parts.memory.frameFlags;
    this.#registers = parts.registers;
    this.#events = parts.events;
    this.#walker = parts.walker;
    this.#tlb = parts.tlb;
    this.#codeWritten = parts.codeWritten;
    this.#data = parts.registers.state + STATE.DATA;
  }

  /** Privilege of the running code. */
  get privilege(): number {
    return this.#registers.cpl === 3 ? PRIVILEGE.USER : PRIVILEGE.SUPERVISOR;
  }

  /** The user's accesses must be aligned, each to its size, or #AC (APM volume 2, 8.2.18). The TLB has none of his data pages then. */
  get checksAlignment(): boolean {
    const registers = this.#registers;
    return (
      (registers.flagsRest & RFLAGS.AC) !== 0 &&
      (registers.saveWord(SAVE.CR0) & CR0.AM) !== 0 &&
      // Or a kernel's STAC would cost the user his TLB.
      registers.cpl === 3
    );
  }

  /** `size` bytes (1 to 16) at ADDRESS into DATA. 0 or a LEAVE code. */
  load(size: number, privilege: number): number {
    const reason = this.#locate(size, ACCESS.READ, privilege);
    if (reason !== 0) return reason;
    if (this.#isWatched(size, 'read', privilege)) return LEAVE.STEP;
    const here = this.#bytesInFirst(size);
    const failed = this.#readPart(this.#first, 0, here);
    if (failed !== 0 || here === size) return failed;
    return this.#readPart(this.#second, here, size - here);
  }

  /** `size` bytes of DATA to ADDRESS. */
  store(size: number, privilege: number): number {
    const reason = this.#locate(size, ACCESS.WRITE, privilege);
    if (reason !== 0) return reason;
    if (this.#isWatched(size, 'write', privilege)) return LEAVE.STEP;
    const here = this.#bytesInFirst(size);
    if (this.step !== undefined && (this.#first.address < 0 || (here < size && this.#second.address < 0))) {
      if (!this.step.mayWrite()) return LEAVE.VMEXIT;
    }
    this.#writePart(this.#first, 0, here);
    if (here < size) this.#writePart(this.#second, here, size - here);
    return 0;
  }

  /** Whether such a store would succeed. */
  probe(size: number, privilege: number): number {
    const reason = this.#locate(size, ACCESS.WRITE, privilege);
    if (reason !== 0) return reason;
    return this.#isWatched(size, 'probe', privilege) ? LEAVE.STEP : 0;
  }

  /** A data breakpoint on the access at ADDRESS, which generated code cannot stop behind. */
  #isWatched(size: number, access: 'read' | 'write' | 'probe', privilege: number): boolean {
    if (!this.#debug.watchesData || privilege === PRIVILEGE.IMPLICIT) return false;
    const registers = this.#registers;
    return !this.#debug.mayAccess(
      registers.word(STATE.ADDRESS),
      registers.word(STATE.ADDRESS + 4),
      size,
      access,
    );
  }

  /** Loads for the slow path itself. The result is in `value`. */
  loadLong(address: bigint, privilege: number): number {
    this.#registers.setLong(STATE.ADDRESS, BigInt.asUintN(64, address));
    return this.load(8, privilege);
  }
  /** What `loadLong` loaded. */
  get value(): bigint {
    return this.#registers.long(STATE.DATA);
  }
  storeLong(address: bigint, value: bigint, privilege: number): number {
    this.#registers.setLong(STATE.ADDRESS, BigInt.asUintN(64, address));
    this.#registers.setLong(STATE.DATA, BigInt.asUintN(64, value));
    return this.store(8, privilege);
  }
  loadSized(address: bigint, size: number, privilege: number): number {
    this.#registers.setLong(STATE.ADDRESS, BigInt.asUintN(64, address));
    this.#registers.setLong(STATE.DATA, 0n);
    return this.load(size, privilege);
  }
  storeSized(address: bigint, value: bigint, size: number, privilege: number): number {
    this.#registers.setLong(STATE.ADDRESS, BigInt.asUintN(64, address));
    this.#registers.setLong(STATE.DATA, BigInt.asUintN(64, value));
    return this.store(size, privilege);
  }
  probeAt(address: bigint, size: number, privilege: number): number {
    this.#registers.setLong(STATE.ADDRESS, BigInt.asUintN(64, address));
    return this.probe(size, privilege);
  }

  #isMisaligned(low: number, size: number): boolean {
    return (low & (size - 1)) !== 0 && (size & (size - 1)) === 0;
  }

  #bytesInFirst(size: number): number {
    const offset = this.#registers.word(STATE.ADDRESS) & (PAGE - 1);
    return offset + size > PAGE ? PAGE - offset : size;
  }

  /** Translates all of an access at ADDRESS. 0: `#first` (and `#second`) say where it lies. */
  #locate(size: number, access: number, privilege: number): number {
    const low = this.#registers.word(STATE.ADDRESS);
    const high = this.#registers.word(STATE.ADDRESS + 4);
    if (!isCanonical(high)) return this.#events.raiseNotCanonical();
    // Before any page fault, as on AMD's cores.
    if (this.#isMisaligned(low, size) && privilege === PRIVILEGE.USER && this.checksAlignment)
      return this.#events.raiseWith(VECTOR.AC, 0);
    const reason = this.#translate(low, high, access, privilege, this.#first);
    if (reason !== 0 || (low & (PAGE - 1)) + size <= PAGE) return reason;
    const nextLow = ((low & ~(PAGE - 1)) + PAGE) | 0;
    const nextHigh = nextLow === 0 ? (high + 1) | 0 : high;
    if (!isCanonical(nextHigh)) return this.#events.raiseNotCanonical();
    return this.#translate(nextLow, nextHigh, access, privilege, this.#second);
  }

  #translate(low: number, high: number, access: number, privilege: number, into: Part): number {
    const walker = this.#walker;
    const reason = walker.translate(low, high, access, privilege);
    if (reason !== 0) {
      if (this.#toBus(reason, into) !== TO_BUS) return reason;
      return 0;
    }
    into.address = walker.frame * PAGE + (low & (PAGE - 1));
    if (privilege !== PRIVILEGE.IMPLICIT) this.#fill(low, high, access, privilege);
    return 0;
  }

  #fill(low: number, high: number, access: number, privilege: number): void {
    if (this.#debug.watchesData && this.#debug.watchesPage(low, high, 'data')) return;
    const walker = this.#walker;
    const set = privilege === PRIVILEGE.USER ? USER_TLB : 0;
    if (set !== 0 && this.checksAlignment) return;
    // Where SMAP counts, RFLAGS.AC decides at each access.
    if (set === 0 && walker.user && (this.#registers.saveWord(SAVE.CR4) & CR4.SMAP) !== 0) return;
    if (access === ACCESS.READ) this.#tlb.fillRead(low, high, set, walker);
    else if (walker.writable && (this.#frameFlags[walker.frame]! & FRAME_FLAG.CODE) === 0) {
      this.#tlb.fillWrite(low, high, set, walker);
    }
  }

  /** TO_BUS if an instruction is emulated and it is the final address that has no nested mapping. */
  #toBus(reason: number, into: Part): number {
    const { exit } = this.#events;
    if (this.step === undefined || reason !== LEAVE.VMEXIT || exit.code !== VMEXIT.NPF) return reason;
    if (exit.info1High !== NPF.HIGH_GUEST_FINAL) return reason;
    into.address = -1;
    into.gpa = faultGpa(exit);
    return TO_BUS;
  }

  #readPart(part: Part, from: number, count: number): number {
    const bytes = this.#bytes;
    const to = this.#data + from;
    if (part.address < 0) return this.step!.read(part.gpa, bytes.subarray(to, to + count));
    for (let i = 0; i < count; i++) bytes[to + i] = bytes[part.address + i]!;
    return 0;
  }

  #writePart(part: Part, from: number, count: number): void {
    const bytes = this.#bytes;
    const at = this.#data + from;
    if (part.address < 0) {
      this.step!.write(part.gpa, bytes.subarray(at, at + count));
      return;
    }
    for (let i = 0; i < count; i++) bytes[part.address + i] = bytes[at + i]!;
    const frame = Math.floor(part.address / PAGE);
    if ((this.#frameFlags[frame]! & FRAME_FLAG.CODE) !== 0) {
      this.#codeWritten(frame, part.address & (PAGE - 1), count);
    }
  }
}

/** 48-bit addresses: bits 63:47 are all alike. Takes the high word. */
export function isCanonical(high: number): boolean {
  const top = high >> 15;
  return top === 0 || top === -1;
}

/** The same for a whole address. */
export const isCanonicalAddress = (address: bigint): boolean => {
  const top = BigInt.asIntN(64, address) >> 47n;
  return top === 0n || top === -1n;
};
