/**
 * An x86-64 core with SVM: `vmrun` runs a guest until #VMEXIT (APM volume 2, chapter 15; docs/CORE.md says how). The state block lies in
 * host memory; generated code runs the instructions, the slow path everything rare. RAX and RSP are the VMCB's, as in hardware; all other
 * general and vector registers stay in the core between two runs.
 */
import { EVENT, SAVE, VMCB, VMEXIT } from '../../abi/vmcb.ts';
import { RFLAGS, VECTOR } from '../../abi/x86.ts';
import { pfnOf, type Spa } from '../../base/address.ts';
import { type Entropy, seededEntropy } from '../../base/entropy.ts';
import { NotImplementedError } from '../../base/errors.ts';
import type { Trace } from '../../base/trace.ts';
import { PERSONALITIES, type Personality } from '../chip/personality.ts';
import { type FrameOwner, type HostMemory, NO_FRAME } from '../memory/host-memory.ts';
import { ACCESS } from './access.ts';
import { CodeFrames } from './code-frames.ts';
import { DebugUnit } from './debug.ts';
import { EncryptedGuest } from './encrypted-guest.ts';
import { Events } from './events.ts';
import { Exceptions } from './exceptions.ts';
import { FxImage, X87State } from './fx-image.ts';
import { Intercepts } from './intercepts.ts';
import { Interpreter } from './interpreter.ts';
import { Interrupts, SHADOW } from './interrupts.ts';
import { LegacyExecution } from './legacy/execution.ts';
import { isCanonical, MemoryAccess } from './memory-access.ts';
import { type MmioBus, MmioStep } from './mmio.ts';
import { in64BitMode } from './mode.ts';
import { MsrFile } from './msr.ts';
import { NestedWalker } from './nested-walk.ts';
import { PageWalker } from './page-walk.ts';
import type { CoreParts } from './parts.ts';
import { peekCode } from './peek-code.ts';
import { Registers } from './registers.ts';
import { RmpCheck } from './rmp-check.ts';
import { Segmentation } from './segments.ts';
import { LEAVE, STATE, STATE_ORDER } from './state.ts';
import { Stepping } from './stepping.ts';
import { SystemOperations } from './system.ts';
import { CoreTlb } from './tlb.ts';
import { vectorMode } from './vector-mode.ts';
import { GuestExit } from './vmexit.ts';
import { GuestEntry } from './vmrun.ts';
import { EncryptedState } from './vmsa.ts';

export type { MmioBus } from './mmio.ts';

export interface CoreOptions {
  /** The core's number, its APIC id. */
  readonly id: number;
  readonly memory: HostMemory;
  readonly trace: Trace;
  /** The chip that the core is part of; a Milan when absent. */
  readonly personality?: Personality;
  /** Who is charged for the state block and decoded code; `core` when absent. */
  readonly owner?: FrameOwner;
  /** The time stamp counter; when absent, it counts retired instructions, so that runs repeat. */
  readonly tsc?: () => bigint;
  /** What RDRAND and RDSEED give; when absent, the same numbers in every run, others for each core. */
  readonly entropy?: Entropy;
  /** Most bytes of host memory for decoded code. */
  readonly codeBytes?: number;
}

const X87_BYTES = 160;
const MXCSR_RESET = 0x1f80;
/** Instructions of one call of generated code at most: it counts in 32 bits. */
const SLICE = 1 << 30;

export class Core {
  /** The general registers in the instruction encoding's order. RAX and RSP count only while the guest runs. */
  readonly gpr: BigUint64Array;
  /** The same as words, low word first. */
  readonly gprWords: Int32Array;
  /** XMM0 to XMM15, 16 bytes each. */
  readonly xmm: Uint8Array;
  /** DR0 to DR3, which VMRUN does not move. */
  readonly debugAddresses: BigUint64Array;
  readonly interpreter: Interpreter;
  readonly #parts: CoreParts;
  readonly #msrs: MsrFile;
  readonly #image: FxImage;
  readonly #exceptions: Exceptions;
  readonly #stepping: Stepping;
  readonly #legacy: LegacyExecution;
  readonly #entry: GuestEntry;
  readonly #exit: GuestExit;
  readonly #codeFrames: CodeFrames;
  readonly #codeUser: Parameters<CodeFrames['join']>[0];
  readonly #state: number;
  /** Word index of RETIRED. */
  readonly #retired: number;
  readonly #nextFrame = (): number => this.#fetchNextFrame();
  #is64Bit = true;
  #alignmentChecked = false;
  /** VMRUN has loaded the guest. */
  #entered = false;
  /** What kept `#nextFrame` from an answer: a LEAVE code. */
  #fetchFailure = 0;

  /** Throws RangeError when host memory has no room for the state block and some decoded code. */
  constructor(options: CoreOptions) {
    const { id, memory, trace } = options;
    const owner = options.owner ?? memory.owner('core');
    const block = memory.allocateSilicon(STATE_ORDER, owner);
    if (block === NO_FRAME) throw new RangeError('no host memory is left for a core');
    this.#state = block * 4096;
    this.#retired = (this.#state + STATE.RETIRED) >>> 2;
    const registers = new Registers(memory, this.#state);
    registers.setWord(STATE.MXCSR, MXCSR_RESET);
    registers.setLong(STATE.XCR0, 1n);
    new X87State(registers).clear();
    this.#image = new FxImage(registers);
    const events = new Events(registers);
    const guest = new EncryptedGuest();
    const rmp = new RmpCheck(memory, guest, events, registers);
    const nested = new NestedWalker(memory, events, guest, rmp);
    const codeFrames = new CodeFrames(memory);
    this.#codeFrames = codeFrames;
    const tableWritten = (frame: number) => codeFrames.tableWritten(frame);
    const walker = new PageWalker(registers, events, nested, guest, tableWritten);
    const tlb = new CoreTlb(memory.words, this.#state);
    const codeWritten = (frame: number, offset: number, bytes: number) =>
      codeFrames.written(frame, offset, bytes);
    const debug = new DebugUnit(registers, tlb);
    const access = new MemoryAccess({ memory, registers, events, walker, tlb, debug, codeWritten });
    const intercepts = new Intercepts(memory);
    const interrupts = new Interrupts(registers, intercepts, events);
    const entropy = options.entropy ?? seededEntropy(id);
    this.#parts = {
      id,
      memory,
      trace,
      personality: options.personality ?? PERSONALITIES.milan,
      registers,
      events,
      intercepts,
      interrupts,
      debug,
      nested,
      walker,
      tlb,
      access,
      guest,
      rmp,
      entropy,
    };
    const segments = new Segmentation(this.#parts);
    this.#exceptions = new Exceptions(this.#parts, segments);
    this.#msrs = new MsrFile(this.#parts, options.tsc ?? (() => registers.long(STATE.RETIRED)));
    const system = new SystemOperations(this.#parts, segments, this.#exceptions, this.#msrs);
    const encrypted = new EncryptedState(this.#parts, this.#msrs);
    this.#entry = new GuestEntry(this.#parts, encrypted);
    this.#exit = new GuestExit(this.#parts, encrypted);
    this.#stepping = new Stepping(this.#parts, () => this.#stepOnce());
    try {
      this.interpreter = new Interpreter({
        memory,
        owner,
        state: this.#state,
        slowPath: {
          load: (_state, size) => access.load(size, access.privilege),
          store: (_state, size) => access.store(size, access.privilege),
          probe: (_state, size) => access.probe(size, access.privilege),
          system: (_state, record) => system.execute(record),
        },
        onCodeFrame: (frame) => codeFrames.protect(frame),
        onUndefined: (mnemonic, rip) => this.#traceUndefined(mnemonic, rip),
        ...(options.codeBytes === undefined ? {} : { codeBytes: options.codeBytes }),
      });
    } catch (error) {
      memory.free(pfnOf(this.#state as Spa), STATE_ORDER);
      throw error;
    }
    this.#legacy = new LegacyExecution({
      parts: this.#parts,
      segments,
      fetchFrame: (linear) => this.#fetchFrame(linear | 0, 0),
      fetchFailure: () => this.#fetchFailure,
      interpreter: this.interpreter,
    });
    this.gpr = memory.longs.subarray(this.#state >>> 3, (this.#state >>> 3) + 16);
    this.gprWords = memory.words.subarray(this.#state >>> 2, (this.#state >>> 2) + 32);
    this.xmm = memory.bytes.subarray(this.#state + STATE.XMM, this.#state + STATE.XMM + 256);
    const dr0 = (this.#state + STATE.DR0) >>> 3;
    this.debugAddresses = memory.longs.subarray(dr0, dr0 + 4);
    this.#codeUser = { tlb, interpreter: this.interpreter };
    codeFrames.join(this.#codeUser);
    memory.translationCaches.add(tlb);
  }

  /** Instructions retired so far, of all guests. */
  get retired(): number {
    const { words } = this.#parts.memory;
    const low = words[this.#retired]! >>> 0;
    const high = words[this.#retired + 1]! >>> 0;
    return high === 0 ? low : high * 0x1_0000_0000 + low;
  }

  /** The SSE control and status register. */
  get mxcsr(): number {
    return this.#parts.registers.word(STATE.MXCSR);
  }
  set mxcsr(value: number) {
    this.#parts.registers.setWord(STATE.MXCSR, value);
  }
  /** The x87 part of FXSAVE's image, 160 bytes, without MXCSR. */
  readX87(into: Uint8Array): void {
    this.#image.bytes.fill(0);
    this.#image.takeX87(8);
    into.set(this.#image.bytes.subarray(0, X87_BYTES));
  }
  writeX87(from: Uint8Array): void {
    this.#image.bytes.set(from.subarray(0, X87_BYTES));
    this.#image.giveX87(8);
  }
  get xcr0(): bigint {
    return this.#parts.registers.long(STATE.XCR0);
  }
  set xcr0(value: bigint) {
    this.#parts.registers.setLong(STATE.XCR0, value);
  }
  get tscAux(): bigint {
    return this.#msrs.tscAux;
  }
  set tscAux(value: bigint) {
    this.#msrs.tscAux = value;
  }

  /**
   * VMRUN of the VMCB at `vmcb` (page-aligned) until #VMEXIT. `budget` instructions used up count as the host's timer interrupt: exit INTR.
   * Returns the low 32 bits of EXITCODE, signed; the VMCB says the rest.
   */
  vmrun(vmcb: Spa, budget: number): number {
    this.#entered = false;
    try {
      return this.#enter(vmcb, budget);
    } catch (error) {
      this.#giveUp(error);
      return this.#entered ? this.#exit.store(vmcb) : this.#exit.storeRefused(vmcb, VMEXIT.NOT_IMPLEMENTED);
    }
  }

  #enter(vmcb: Spa, budget: number): number {
    const { events, intercepts } = this.#parts;
    if (!this.#entry.load(vmcb)) return this.#exit.storeRefused(vmcb, VMEXIT.INVALID);
    this.#entered = true;
    if (this.#codeFrames.changedByHost()) this.interpreter.flush();
    events.halted = false;
    this.#parts.debug.pending = 0;
    let reason: number = LEAVE.RESUME;
    const event = intercepts.word(VMCB.EVENTINJ);
    if ((event & EVENT.VALID) !== 0) {
      const nextRip = this.#parts.memory.longs[(vmcb + VMCB.NEXT_RIP) >>> 3]!;
      reason = this.#exceptions.inject(event, intercepts.word(VMCB.EVENTINJ + 4), nextRip);
      intercepts.setWord(VMCB.EVENTINJ, event & ~EVENT.VALID);
    }
    if (reason !== LEAVE.VMEXIT) this.#run(budget);
    return this.#exit.store(vmcb);
  }

  /** Something that the processor has and this core has not: exit NOT_IMPLEMENTED, whose cause the trace names. Other errors are thrown on. */
  #giveUp(error: unknown): void {
    const { debug, events } = this.#parts;
    debug.stepping = true;
    this.#entry.forget();
    if (!(error instanceof NotImplementedError)) throw error;
    events.exit.begin(VMEXIT.NOT_IMPLEMENTED);
    const { registers, trace, id } = this.#parts;
    const rip = `0x${registers.rip.toString(16)}`;
    trace.fail({ kind: 'core', who: 'core', what: 'not-implemented', why: error.message, vcpu: id, rip });
  }

  /**
   * Runs the one instruction at the VMCB's RIP; accesses that the nested tables do not allow go to `bus`. `done`: it is executed, or an exception
   * of it delivered. `pending`: `bus` had no data yet, nothing has changed. `exit`: it was intercepted, or its fetch or page tables
   * have no nested mapping; the VMCB holds that exit. A repeated string instruction may be done in part, with RIP still at it.
   */
  emulate(vmcb: Spa, bus: MmioBus): 'done' | 'pending' | 'failed' | 'exit' {
    const { access, registers } = this.#parts;
    this.#entry.reload(vmcb);
    if (this.#codeFrames.changedByHost()) this.interpreter.flush();
    const step = new MmioStep(bus, registers);
    let reason: number;
    access.step = step;
    try {
      reason = this.#stepOnce();
    } catch (error) {
      this.#giveUp(error);
      reason = LEAVE.VMEXIT;
    } finally {
      access.step = undefined;
    }
    if (step.outcome === 'pending') {
      this.#entry.forget();
      return 'pending';
    }
    if (step.outcome === 'running' && reason === LEAVE.EXCEPTION) reason = this.#exceptions.deliverPending();
    if (step.outcome === 'running' && reason === LEAVE.VMEXIT) {
      this.#exit.store(vmcb);
      return 'exit';
    }
    this.#exit.storeGuest(vmcb);
    return 'done';
  }

  /** Guest code at the VMCB's CS:RIP as a fetch would see it. Returns how many bytes could be read: none in a mode that the core does not have. */
  fetchBytes(vmcb: Spa, into: Uint8Array): number {
    try {
      this.#entry.reload(vmcb);
    } catch (error) {
      if (error instanceof NotImplementedError) return 0;
      throw error;
    }
    return peekCode(this.#parts, into);
  }

  /** Gives back host memory. */
  close(): void {
    this.#codeFrames.leave(this.#codeUser);
    this.#parts.memory.translationCaches.delete(this.#parts.tlb);
    this.interpreter.close();
    this.#legacy.forget();
    this.#parts.memory.free(pfnOf(this.#state as Spa), STATE_ORDER);
  }

  /** Runs until an exit is pending. */
  #run(budget: number): void {
    const { registers, events, debug, interrupts } = this.#parts;
    const { words } = registers;
    let left = budget;
    for (;;) {
      const watched = registers.flagsRest & (RFLAGS.TF | RFLAGS.AC);
      const quiet = debug.pending === 0 && !interrupts.pending && watched === 0;
      if (!quiet && this.#deliverWaiting() === LEAVE.VMEXIT) return;
      this.#alignmentChecked = !quiet && this.#checkAlignment();
      const before = words[this.#retired]!;
      if (!registers.modeKnown) this.#lookAtMode();
      const is64Bit = this.#is64Bit;
      let reason: number;
      if (left <= 0) reason = LEAVE.BUDGET;
      else if ((!quiet && this.#stepping.needed) || (!is64Bit && debug.watchesCode))
        reason = this.#stepping.step();
      else if (!is64Bit) reason = this.#stepOnce();
      else {
        debug.stepping = false;
        reason = this.interpreter.run(Math.min(left, SLICE));
        debug.stepping = true;
      }
      if (reason === LEAVE.FETCH) reason = this.#fetch();
      if (reason === LEAVE.STEP) reason = this.#stepping.step();
      left -= (words[this.#retired]! - before) | 0;
      if (reason === LEAVE.EXCEPTION) reason = this.#exceptions.deliverPending();
      if (reason === LEAVE.VMEXIT) return;
      if (events.exitBehind) {
        events.exitBehind = false;
        return;
      }
      if (events.halted) events.halted = debug.pending === 0 && !interrupts.deliverable;
      if ((reason === LEAVE.BUDGET && left <= 0) || events.halted) {
        this.#timerInterrupt();
        return;
      }
      // Handlers that never get to an instruction of theirs must end too.
      if (reason === 0) left--;
    }
  }

  /** Whether the user's accesses must be aligned. From then on each of them has to miss the TLB. */
  #checkAlignment(): boolean {
    const { access, tlb } = this.#parts;
    if (!access.checksAlignment) return false;
    if (!this.#alignmentChecked) tlb.emptyUserData();
    return true;
  }

  /** What comes between two instructions: a debug trap, then the virtual interrupt. LEAVE.VMEXIT, or 0. */
  #deliverWaiting(): number {
    const { debug, interrupts } = this.#parts;
    if (debug.pending !== 0 && interrupts.shadow !== SHADOW.INTERRUPTS_AND_TRAPS) {
      this.#stepping.trap();
      if (this.#exceptions.deliverPending() === LEAVE.VMEXIT) return LEAVE.VMEXIT;
    }
    if (!interrupts.pending || !interrupts.deliverable || interrupts.shadow !== SHADOW.NONE) return 0;
    return interrupts.take(this.#exceptions) === LEAVE.VMEXIT ? LEAVE.VMEXIT : 0;
  }

  /** The caller's time is up. It is told so whether or not the VMCB intercepts INTR: nothing else could take this interrupt. */
  #timerInterrupt(): void {
    this.#parts.events.exit.begin(VMEXIT.INTR);
  }

  /** Decodes at RIP. 0, LEAVE.EXCEPTION or LEAVE.VMEXIT; LEAVE.STEP where the page has a breakpoint. */
  #fetch(): number {
    const { registers, debug } = this.#parts;
    const low = registers.word(STATE.RIP);
    if (debug.watchesCode && debug.watchesPage(low, registers.word(STATE.RIP + 4), 'code')) return LEAVE.STEP;
    const frame = this.#frameOfRip();
    if (frame < 0) return this.#fetchFailure;
    this.#codeFrames.protect(frame);
    return this.interpreter.decode(frame, low & 0xfff, this.#nextFrame) ? 0 : this.#fetchFailure;
  }

  #lookAtMode(): void {
    const { registers } = this.#parts;
    this.interpreter.mode = vectorMode(registers.saveWord(SAVE.CR0), registers.saveWord(SAVE.CR4));
    this.#is64Bit = in64BitMode(registers);
    registers.modeKnown = true;
  }

  #stepOnce(): number {
    if (!this.#parts.registers.modeKnown) this.#lookAtMode();
    if (!this.#is64Bit) return this.#legacy.step();
    const frame = this.#frameOfRip();
    if (frame < 0) return this.#fetchFailure;
    const reason = this.interpreter.step(frame, this.#nextFrame);
    return reason === LEAVE.FETCH ? this.#fetchFailure : reason;
  }

  #frameOfRip(): number {
    const { registers } = this.#parts;
    return this.#fetchFrame(registers.word(STATE.RIP), registers.word(STATE.RIP + 4));
  }

  #fetchNextFrame(): number {
    const frame = this.#frameBehind();
    if (frame >= 0) this.#codeFrames.protect(frame);
    return frame;
  }

  #frameBehind(): number {
    const { registers } = this.#parts;
    const low = ((registers.word(STATE.RIP) & ~0xfff) + 4096) | 0;
    const high = registers.word(STATE.RIP + 4);
    return this.#fetchFrame(low, low === 0 ? (high + 1) | 0 : high);
  }

  /** The frame of code at a linear address, by the fetch TLB or a walk that fills it. −1: `#fetchFailure` says why not. */
  #fetchFrame(low: number, high: number): number {
    const { registers, tlb, walker, access, events, debug } = this.#parts;
    const set = registers.word(STATE.TLB_SET);
    const known = tlb.fetchFrame(low, high, set);
    if (known >= 0) return known;
    this.#fetchFailure = isCanonical(high)
      ? walker.translate(low, high, ACCESS.FETCH, access.privilege)
      : events.raiseWith(VECTOR.GP, 0);
    if (this.#fetchFailure !== 0) return NO_FRAME;
    const { frame } = walker;
    if (debug.watchesCode && debug.watchesPage(low, high, 'code')) return frame;
    tlb.fillFetch(low, high, set, this.interpreter.pageMap(frame), walker);
    return frame;
  }

  #traceUndefined(mnemonic: string, rip: bigint): void {
    const { trace, id, events } = this.#parts;
    events.noteUndefined(mnemonic, rip);
    if (!trace.on) return;
    const at = `0x${rip.toString(16)}`;
    trace.emit({ kind: 'core', who: 'core', what: 'undefined', why: mnemonic, vcpu: id, rip: at });
  }
}
