/**
 * A VM reduced to what a fault can see, with every answer in the test's hands: slots, attributes, backings, invalidations. Its memory and nested tables
 * are the real ones.
 */
import { KvmRun } from '../../../src/abi/kvm-run.ts';
import { type Gfn, type Gpa, type Hva, type Pfn, pfn } from '../../../src/base/address.ts';
import { Trace } from '../../../src/base/trace.ts';
import { type FrameOwner, HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import type { DirtyBitmap } from '../../../src/kernel/kvm/dirty-bitmap.ts';
import type {
  BackingPage,
  FaultSlot,
  GuestMemory,
  InvalidationChecks,
  RunPolicy,
} from '../../../src/kernel/kvm/mmu/guest-memory.ts';
import { Mmu } from '../../../src/kernel/kvm/mmu/mmu.ts';
import { PageFault, PageFaultHandler } from '../../../src/kernel/kvm/mmu/page-fault.ts';

export const POLICIES = {
  '7.2': {
    attributeCheckedBeforeSlot: true,
    retryCheckedEarly: true,
    hypercallRetPreset: true,
    mapRangeAnswersChecked: true,
    failEntryReason64: true,
    preFaultOfDyingSlot: 'EAGAIN',
  },
  '6.12': {
    attributeCheckedBeforeSlot: true,
    retryCheckedEarly: true,
    hypercallRetPreset: false,
    mapRangeAnswersChecked: false,
    failEntryReason64: false,
    preFaultOfDyingSlot: 'EINTR',
  },
  'private-fault': {
    attributeCheckedBeforeSlot: false,
    retryCheckedEarly: false,
    hypercallRetPreset: true,
    mapRangeAnswersChecked: true,
    failEntryReason64: true,
    preFaultOfDyingSlot: 'EAGAIN',
  },
} as const satisfies Record<string, RunPolicy>;
export type PolicyName = keyof typeof POLICIES;

/** mmu_invalidate_seq and friends, in the plainest form. */
export class Invalidations implements InvalidationChecks {
  seq = 0;
  inProgress = 0;
  start = 0;
  end = 0;
  begin(start: number, end: number): void {
    this.inProgress++;
    this.start = start;
    this.end = end;
  }
  finish(): void {
    this.seq++;
    this.inProgress--;
    if (this.inProgress === 0) this.wake();
  }
  wake = (): void => {};
  idle(): Promise<void> {
    if (this.inProgress === 0) return Promise.resolve();
    return new Promise((resolve) => {
      this.wake = resolve;
    });
  }
  snapshot(): number {
    return this.seq;
  }
  retryGfn(snapshot: number, gfn: Gfn): boolean {
    if (this.inProgress > 0 && gfn >= this.start && gfn < this.end) return true;
    return this.seq !== snapshot;
  }
  retryGfnUnsafe(snapshot: number, gfn: Gfn): boolean {
    return this.retryGfn(snapshot, gfn);
  }
}

export interface SlotSetup {
  baseGfn?: number;
  npages?: number;
  flags?: number;
  userspaceAddr?: number;
  invalid?: boolean;
  gmemOnly?: boolean;
  dirty?: DirtyBitmap;
  /** Levels that may not be used. */
  disallowed?: readonly number[];
}

export class FaultBench implements GuestMemory {
  readonly trace = new Trace();
  readonly memory = HostMemory.create({ bytes: 16 * 1024 * 1024, trace: this.trace });
  readonly owner: FrameOwner = this.memory.owner('test');
  readonly mmu = new Mmu(this.memory, this.trace);
  readonly invalidation = new Invalidations();
  readonly policy: RunPolicy;
  readonly private = new Set<number>();
  readonly run = new KvmRun();
  readonly slotList: FaultSlot[] = [];
  readonly calls: string[] = [];
  readonly slots = {
    find: (gfn: Gfn): FaultSlot | undefined =>
      this.slotList.find((slot) => gfn >= slot.baseGfn && gfn < slot.baseGfn + slot.npages),
  };
  readonly attributes = { isPrivate: (gfn: Gfn): boolean => this.private.has(gfn) };
  gmem: (gfn: number, into: BackingPage) => number;
  shared: (hva: number, access: 'read' | 'write', into: BackingPage) => number;
  #closed = false;
  readonly #frames = new Map<string, Pfn>();

  constructor(policy: PolicyName = '7.2') {
    this.policy = POLICIES[policy];
    this.gmem = (gfn, into) => this.give(`gmem ${gfn}`, into);
    this.shared = (hva, _access, into) => this.give(`hva ${hva}`, into);
  }

  /** The frame called `name`, made when it is first asked for. */
  frame(name: string): Pfn {
    let frame = this.#frames.get(name);
    if (frame === undefined) {
      frame = pfn(this.memory.allocate(0, this.owner));
      this.#frames.set(name, frame);
    }
    return frame;
  }
  give(name: string, into: BackingPage): number {
    into.pfn = this.frame(name);
    into.order = 0;
    into.writable = true;
    return 0;
  }

  privateMaxMappingLevel(): number {
    return 3;
  }
  gmemGetPfn(_slot: FaultSlot, gfn: Gfn, into: BackingPage): number {
    this.calls.push(`gmem ${gfn}`);
    return this.gmem(gfn, into);
  }
  faultInHva(hva: Hva, access: 'read' | 'write', into: BackingPage): number {
    this.calls.push(`${access} ${hva}`);
    return this.shared(hva, access, into);
  }

  /** Default: one gmem slot (flags 4) of 16 pages at gfn 0x100. */
  addSlot(setup: SlotSetup = {}): void {
    const disallowed = setup.disallowed ?? [];
    this.slotList.push({
      baseGfn: (setup.baseGfn ?? 0x100) as Gfn,
      npages: setup.npages ?? 16,
      flags: setup.flags ?? 4,
      userspaceAddr: (setup.userspaceAddr ?? 0x7000_0000) as Hva,
      invalid: setup.invalid ?? false,
      gmemOnly: setup.gmemOnly ?? false,
      dirty: setup.dirty,
      userSlot: this.slotList.length,
      largePageDisallowed: (_gfn, level) => disallowed.includes(level),
    });
  }

  /** A handler on this VM; `checks` in place of its own. */
  handler(checks: InvalidationChecks = this.invalidation): PageFaultHandler {
    return new PageFaultHandler(this, this.mmu, checks);
  }

  /** A fault as the NPF exit begins it. Error-code bits: 2 write, 16 fetch. */
  fault(gpa: number, error: number, visibility: 'private' | 'shared'): PageFault {
    const fault = new PageFault();
    fault.begin(gpa as Gpa, error, visibility);
    return fault;
  }

  /** Resolves one fault and returns what it came to. */
  take(gpa: number, error: number, visibility: 'private' | 'shared'): number {
    return this.handler().handle(this.fault(gpa, error, visibility), this.run);
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.mmu.destroy();
    for (const frame of this.#frames.values()) this.memory.free(frame, 0);
    this.memory.close();
  }
}
