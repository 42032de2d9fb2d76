/**
 * A process with a KVM that records each call, keeps what is mapped, open and registered, and fails where it is told to. It
 * checks only what a VMM must never get wrong (unknown descriptors, unmapping what is not mapped); the rules of the real calls
 * are tested against the kernel itself.
 */
import { KvmRun } from '../../src/abi/kvm-run.ts';
import { type Hva, hva } from '../../src/base/address.ts';
import { type ErrnoName, LinuxError } from '../../src/base/errors.ts';
import type {
  CpuidEntry,
  Kvm,
  KvmVcpu,
  KvmVm,
  PreFaultRange,
  Process,
  ProcessMemory,
  Regs,
  Segment,
  Sregs,
  UserMemoryRegion,
  UserMemoryRegion2,
} from '../../src/kernel/interface.ts';
import { UnaskedVcpu, unasked } from './unasked-vcpu.ts';

/** Answers of KVM_CHECK_EXTENSION: a KVM with everything that guest_memfd needs. */
const ALL_CAPABILITIES: Record<number, number> = { 10: 32764, 201: 4096, 231: 1, 232: 1, 233: 8, 234: 1 };

const SEGMENT: Segment = {
  base: 0n,
  limit: 0xffff,
  selector: 0,
  type: 3,
  present: 1,
  dpl: 0,
  db: 0,
  s: 1,
  l: 0,
  g: 0,
  avl: 0,
  unusable: 0,
};

/** One return of KVM_RUN: what it fills in, and what it returns (0 when absent). */
export interface ScriptedRun {
  returns?: number;
  fill?: (run: KvmRun) => void;
  pending?: Promise<void>;
  instructions?: number;
}

export class ScriptedVcpu extends UnaskedVcpu implements KvmVcpu {
  readonly id: number;
  readonly kvmRun = new KvmRun();
  readonly dirtyRing = undefined;
  pending: Promise<void> | undefined;
  instructions = 0;
  runs = 0;
  closed = false;
  regs: Regs | undefined;
  sregs: Sregs | undefined;
  cpuid: readonly CpuidEntry[] = [];
  readonly preFaults: (PreFaultRange & { flags: bigint })[] = [];
  /** What KVM_PRE_FAULT_MEMORY answers, one after the other; then all of the range. */
  readonly preFaultAnswers: (PreFaultRange | ErrnoName)[] = [];
  readonly #script: (vcpu: ScriptedVcpu) => ScriptedRun;

  constructor(id: number, script: (vcpu: ScriptedVcpu) => ScriptedRun) {
    super();
    this.id = id;
    this.#script = script;
  }

  run(): number {
    this.runs++;
    if (this.runs > 100_000) throw new Error('the run loop does not end');
    const step = this.#script(this);
    step.fill?.(this.kvmRun);
    this.pending = step.pending;
    this.instructions += step.instructions ?? 1;
    return step.returns ?? 0;
  }

  getRegs(): Regs {
    if (this.regs === undefined) throw new LinuxError('EINVAL', 'no registers set');
    return this.regs;
  }
  setRegs(regs: Regs): void {
    this.regs = regs;
  }
  getSregs(): Sregs {
    const table = { base: 0n, limit: 0xffff };
    return {
      ...{ cs: SEGMENT, ds: SEGMENT, es: SEGMENT, fs: SEGMENT, gs: SEGMENT, ss: SEGMENT },
      ...{ tr: SEGMENT, ldt: SEGMENT, gdt: table, idt: table },
      ...{ cr0: 0x60000010n, cr2: 0n, cr3: 0n, cr4: 0n, cr8: 0n, efer: 0n, apicBase: 0xfee00900n },
      interruptBitmap: [0n, 0n, 0n, 0n],
    };
  }
  setSregs(sregs: Sregs): void {
    this.sregs = sregs;
  }
  getCpuid2(): CpuidEntry[] {
    return [...this.cpuid];
  }
  setCpuid2(entries: readonly CpuidEntry[]): void {
    this.cpuid = entries;
  }
  /** What waits has come. */
  ready = false;
  getLapic(): Uint8Array {
    return new Uint8Array(1024);
  }
  setLapic(): void {}
  getMpState(): number {
    return 0;
  }
  setMpState(): void {}
  preFaultMemory(range: PreFaultRange & { flags: bigint }): PreFaultRange {
    this.preFaults.push(range);
    const answer = this.preFaultAnswers.shift() ?? { gpa: range.gpa + range.size, size: 0n };
    if (typeof answer === 'string') throw new LinuxError(answer, 'as the test says');
    return answer;
  }
  close(): void {
    this.closed = true;
  }
}

export class RecordingProcess implements Process {
  /** Each call, as `name(arguments)`. */
  readonly calls: string[] = [];
  readonly mappings = new Map<number, number>();
  readonly files = new Map<number, { kind: string; size: bigint }>();
  readonly slots = new Map<number, UserMemoryRegion2 | UserMemoryRegion>();
  readonly capabilities = { ...ALL_CAPABILITIES };
  readonly vcpus: ScriptedVcpu[] = [];
  readonly written = new Map<number, Uint8Array>();
  vmOpen = false;
  kvmOpen = false;
  vmType = -1;
  script: (vcpu: ScriptedVcpu) => ScriptedRun = () => ({ fill: (run) => (run.exitReason = 5) });
  cpuid: CpuidEntry[] = [];
  readonly #failures = new Map<string, { nth: number; code: ErrnoName }>();
  #nextFd = 3;
  #nextAddress = 0x7f00_0000_0000;

  /** Lets the `nth` call of `name` from now on fail. */
  fail(name: string, code: ErrnoName, nth = 1): void {
    this.#failures.set(name, { nth, code });
  }

  /** Everything that a VMM could have left behind. */
  leaks(): string[] {
    return [
      ...[...this.mappings].map(([at, length]) => `mapping 0x${at.toString(16)}+0x${length.toString(16)}`),
      ...[...this.files].map(([fd, { kind }]) => `${kind} ${fd}`),
      ...[...this.slots.keys()].map((slot) => `slot ${slot}`),
      ...(this.vmOpen ? ['VM'] : []),
      ...(this.kvmOpen ? ['KVM'] : []),
      ...this.vcpus.filter(({ closed }) => !closed).map(({ id }) => `vCPU ${id}`),
    ];
  }

  /** Calls of one name. */
  of(name: string): string[] {
    return this.calls.filter((call) => call.startsWith(`${name}(`));
  }

  #call(name: string, ...details: (string | number | bigint | undefined)[]): void {
    const shown = details
      .filter((detail) => detail !== undefined)
      .map((detail) => (typeof detail === 'string' ? detail : `0x${detail!.toString(16)}`));
    this.calls.push(`${name}(${shown.join(', ')})`);
    const failure = this.#failures.get(name);
    if (failure === undefined || --failure.nth > 0) return;
    this.#failures.delete(name);
    throw new LinuxError(failure.code, `${name} was told to fail`);
  }

  #file(fd: number): { kind: string; size: bigint } {
    const file = this.files.get(fd);
    if (file === undefined) throw new LinuxError('EBADF', `descriptor ${fd}`);
    return file;
  }

  #open(kind: string): number {
    const fd = this.#nextFd++;
    this.files.set(fd, { kind, size: 0n });
    return fd;
  }

  memfdCreate(name: string): number {
    this.#call('memfdCreate', name);
    return this.#open('memfd');
  }
  open(path: string, options?: { readOnly?: boolean }): number {
    this.#call('open', path, options?.readOnly ? 'read-only' : undefined);
    const fd = this.#open('file');
    if (options?.readOnly) this.#file(fd).size = 0x100000n;
    return fd;
  }
  ftruncate(fd: number, size: bigint): void {
    this.#call('ftruncate', fd, size);
    this.#file(fd).size = size;
  }
  fstat(fd: number): { size: bigint; blockSize: number } {
    this.#call('fstat', fd);
    return { size: this.#file(fd).size, blockSize: 4096 };
  }
  pread(): number {
    throw new Error('a VMM does not pread');
  }
  pwrite(): number {
    throw new Error('a VMM does not pwrite');
  }
  fallocate(fd: number, mode: number, offset: bigint, length: bigint): void {
    this.#call('fallocate', this.#file(fd).kind, mode, offset, length);
  }
  lock(): boolean {
    return true;
  }
  close(fd: number): void {
    this.#call('close', this.#file(fd).kind);
    this.files.delete(fd);
  }

  readonly memory: ProcessMemory = {
    mmap: (request) => {
      this.#call(
        'mmap',
        request.length,
        request.protection,
        request.flags,
        request.fd === undefined ? undefined : this.#file(request.fd).kind,
        request.offset,
      );
      const address = this.#nextAddress;
      this.#nextAddress += request.length + 0x1000;
      this.mappings.set(address, request.length);
      return hva(address);
    },
    munmap: (address: Hva, length: number) => {
      this.#call('munmap', length);
      if (this.mappings.get(address) !== length) throw new Error(`munmap of what is not mapped: ${address}`);
      this.mappings.delete(address);
    },
    madvise: (address, length, advice) => {
      const base = [...this.mappings].find(([at, size]) => at <= address && address + length <= at + size);
      if (base === undefined) throw new LinuxError('ENOMEM', 'madvise outside every mapping');
      this.#call('madvise', address - base[0], length, advice);
    },
    read: () => {
      throw new Error('a VMM does not read guest memory');
    },
    write: (address, from) => {
      this.#call('write', from.length);
      this.written.set(address, from.slice());
    },
  };

  openSev(): number {
    this.#call('openSev');
    return 99;
  }
  sevIssueCommand(): void {
    throw new Error('no /dev/sev');
  }
  openKvm(): Kvm {
    this.#call('openKvm');
    this.kvmOpen = true;
    return {
      getApiVersion: () => 12,
      checkExtension: (capability) => this.capabilities[capability] ?? 0,
      getDeviceAttr: () => 0n,
      getVcpuMmapSize: () => 0x3000,
      getMsrIndexList: () => [],
      getMsrFeatureIndexList: () => [],
      getMsrs: () => [],
      getSupportedCpuid: () => this.cpuid,
      createVm: (type) => {
        this.#call('createVm', type);
        this.vmOpen = true;
        this.vmType = type;
        return this.#vm();
      },
      close: () => {
        this.kvmOpen = false;
      },
    };
  }

  #vm(): KvmVm {
    const set = (region: UserMemoryRegion | UserMemoryRegion2): void => {
      if (region.memorySize === 0n) this.slots.delete(region.slot);
      else this.slots.set(region.slot, region);
    };
    return {
      checkExtension: (capability) => this.capabilities[capability] ?? 0,
      enableCap: ({ cap, args }) => this.#call('enableCap', cap, args?.[0]),
      memoryEncryptOp: () => this.#call('memoryEncryptOp'),
      setUserMemoryRegion: (region) => {
        this.#call('setUserMemoryRegion', region.slot, region.flags, region.guestPhysAddr, region.memorySize);
        set(region);
      },
      setUserMemoryRegion2: (region) => {
        this.#call(
          'setUserMemoryRegion2',
          region.slot,
          region.flags,
          region.guestPhysAddr,
          region.memorySize,
          (region.flags & 4) !== 0 ? `${this.#file(region.guestMemfd).kind}` : 'no file',
          region.guestMemfdOffset,
        );
        set(region);
      },
      createGuestMemfd: ({ size, flags }) => {
        this.#call('createGuestMemfd', size, flags);
        return this.#open('guest_memfd');
      },
      setMemoryAttributes: ({ address, size, attributes }) => {
        this.#call('setMemoryAttributes', address, size, attributes);
      },
      getDirtyLog: () => {
        throw new Error('nobody logs dirty pages yet');
      },
      clearDirtyLog: () => {
        throw new Error('nobody logs dirty pages yet');
      },
      resetDirtyRings: () => {
        throw new Error('nobody logs dirty pages yet');
      },
      setMsrFilter: unasked,
      createIrqchip: unasked,
      setBootCpuId: unasked,
      irqLine: unasked,
      signalMsi: unasked,
      setGsiRouting: unasked,
      createVcpu: (id) => {
        this.#call('createVcpu', id);
        const vcpu = new ScriptedVcpu(id, (self) => this.script(self));
        this.vcpus.push(vcpu);
        return vcpu;
      },
      close: () => {
        this.vmOpen = false;
      },
    };
  }
}
