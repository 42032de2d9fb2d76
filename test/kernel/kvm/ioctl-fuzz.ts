/**
 * Calls of kernel/interface.ts with any field, any value, in any order, over several VMs of each type, on one machine with three bystanders. Whatever is asked, the answer
 * is a declared one: a result, a LinuxError, or a NotImplementedError that names what is missing. A seed repeats the calls.
 */
import { expect } from 'vitest';
import type { Hva } from '../../../src/base/address.ts';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { LinuxError, NotImplementedError } from '../../../src/base/errors.ts';
import { Chip } from '../../../src/hardware/chip.ts';
import type {
  CpuidEntry,
  Kvm,
  KvmVcpu,
  KvmVm,
  MsrEntry,
  Segment,
  SevCommand,
} from '../../../src/kernel/interface.ts';
import { createKernel, type Kernel, type Personality } from '../../../src/kernel/kvm/index.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import type { Process } from '../../../src/kernel/process.ts';
import { Bystander } from './fuzz-bystander.ts';
import { GUEST_SNIPPETS, LARGE_MAP } from './fuzz-guest.ts';
import { FuzzValues } from './fuzz-values.ts';

const PAGE = 4096;
const CALLS_BETWEEN_CHECKS = 256;
const CALLS_KEPT = 40;
const MAX_VMS = 4;
const MAX_VCPUS = 4;
const MAX_FILES = 24;
const MAX_MAPPINGS = 12;
/** KVM_RUN's errnos: EINTR, EIO, ENXIO, EBADF, EAGAIN, ENOMEM, EFAULT, EINVAL, EHWPOISON. */
const RUN_RESULTS = new Set([0, 1, -4, -5, -6, -9, -11, -12, -14, -22, -133]);
const EXIT_REASONS = new Set([0, 2, 3, 4, 5, 6, 7, 8, 9, 10, 17, 24, 26, 29, 30, 31, 32, 39, 40, 43]);
const CAPABILITIES = [
  7, 38, 68, 81, 99, 102, 107, 121, 129, 159, 168, 188, 192, 195, 201, 204, 205, 208, 214, 218, 223, 225, 231,
  232, 233, 234, 235, 236, 244,
];
const MSRS = [
  0x10, 0x1b, 0x3a, 0x3b, 0x8b, 0xfe, 0x174, 0x175, 0x176, 0x179, 0x1a0, 0x1d9, 0x200, 0x277, 0x2ff, 0x6e0,
  0x800, 0x802, 0x808, 0x80f, 0x830, 0x838, 0x48, 0x49, 0xc000_0080, 0xc000_0081, 0xc000_0082, 0xc000_0084,
  0xc000_0100, 0xc000_0101, 0xc000_0102, 0xc000_0103, 0xc001_0015, 0xc001_0114, 0xc001_0117, 0xc001_0130,
  0xc001_0131, 0x4b56_4d00, 0x4b56_4d01, 0x4000_0000,
];

interface Machine {
  readonly vm: Vm;
  readonly vcpus: KvmVcpu[];
}

export interface FuzzCounts {
  calls: number;
  succeeded: number;
  refused: number;
  notImplemented: number;
  /** KVM_RUN alone. */
  runs: number;
  /** By exit reason, of runs that came back with 0; by −errno. */
  readonly exits: Map<string, number>;
}

export class IoctlFuzz {
  readonly counts: FuzzCounts = {
    calls: 0,
    succeeded: 0,
    refused: 0,
    notImplemented: 0,
    runs: 0,
    exits: new Map(),
  };
  readonly #values: FuzzValues;
  readonly #kernel: Kernel;
  readonly #bystanders: Bystander[];
  readonly #neighbour: Bystander;
  readonly #process: Process;
  readonly #framesBefore: ReadonlyMap<string, number>;
  readonly #kvms: Kvm[] = [];
  readonly #machines: Machine[] = [];
  /** Addresses of memory that was mapped once. */
  readonly #addresses: number[] = [0x10_0000, 0x7000_0000_0000];
  readonly #last: { what: string; args: unknown; outcome: string }[] = [];
  readonly #actions: readonly (readonly [weight: number, act: () => void])[];
  readonly #weights: number;

  constructor(options: { seed: number; kernel: Personality }) {
    const { seed } = options;
    this.#values = new FuzzValues(seed);
    const chip = new Chip({ generation: 'milan', entropy: seededEntropy(3) });
    const hasSev = seed % 4 !== 3;
    this.#kernel = createKernel({
      memory: 48 << 20,
      kernel: options.kernel,
      timeslice: 200,
      turns: seededEntropy(seed),
      gmemHuge: seed % 2 === 1,
      entropy: seededEntropy(seed + 1),
      ...(hasSev && { chip }),
    });
    const others = this.#kernel.newProcess('bystanders');
    this.#bystanders = [new Bystander(others, 'default'), new Bystander(others, 'sw-protected')];
    if (hasSev) this.#bystanders.push(new Bystander(others, 'sev-snp'));
    this.#framesBefore = this.#kernel.memory.usage();
    this.#process = this.#kernel.newProcess('fuzzed');
    this.#neighbour = new Bystander(this.#process, 'sw-protected');
    this.#actions = [
      ...this.#processActions(),
      ...this.#kvmActions(),
      ...this.#vmActions(),
      ...this.#vcpuActions(),
    ];
    this.#weights = this.#actions.reduce((sum, [weight]) => sum + weight, 0);
  }

  /** Makes `calls` calls. */
  run(calls: number): void {
    const end = this.counts.calls + calls;
    while (this.counts.calls < end) {
      let left = this.#values.below(this.#weights);
      const action = this.#actions.find(([weight]) => {
        left -= weight;
        return left < 0;
      })!;
      action[1]();
      if (this.counts.calls % CALLS_BETWEEN_CHECKS === 0) this.#checkBystanders();
    }
  }

  /** Ends the fuzzed process: nothing of it is left, and the bystanders go on. */
  close(): void {
    this.#checkBystanders();
    this.#process.exit();
    for (const bystander of this.#bystanders) bystander.check();
    expect(this.#sorted(this.#kernel.memory.usage())).toEqual(this.#sorted(this.#framesBefore));
    expect(this.#kernel.psp?.leakedPages ?? 0).toBe(0);
    this.#kernel.close();
  }

  #sorted(usage: ReadonlyMap<string, number>): [string, number][] {
    return [...usage].filter(([, frames]) => frames > 0).sort(([a], [b]) => (a < b ? -1 : 1));
  }

  #checkBystanders(): void {
    this.#explained(() => {
      for (const bystander of [...this.#bystanders, this.#neighbour]) bystander.check();
    });
  }

  /** What fails says which calls came before. */
  #explained(act: () => void): void {
    try {
      act();
    } catch (error) {
      const calls = this.#last.map(({ what, args, outcome }) => `${what}(${inspect(args)}) ${outcome}`);
      throw new Error(`after call ${this.counts.calls}:\n${calls.join('\n')}\n${String(error)}`, {
        cause: error,
      });
    }
  }

  #note(what: string, args: unknown): { what: string; args: unknown; outcome: string } {
    const note = { what, args, outcome: '…' };
    this.#last.push(note);
    if (this.#last.length > CALLS_KEPT) this.#last.shift();
    this.counts.calls++;
    return note;
  }

  /** One call. Undefined where it was refused. */
  #call<T>(what: string, args: unknown, act: () => T): T | undefined {
    const note = this.#note(what, args);
    try {
      const result = act();
      note.outcome = '= ok';
      this.counts.succeeded++;
      return result;
    } catch (error) {
      if (error instanceof LinuxError) this.counts.refused++;
      else if (error instanceof NotImplementedError) this.counts.notImplemented++;
      else
        this.#explained(() => {
          throw error;
        });
      note.outcome = `= ${(error as Error).message}`;
      return undefined;
    }
  }

  // What calls are about.

  /** A descriptor of the process, one that is closed, or anything. */
  #fd(): number {
    const values = this.#values;
    return values.number(values.pick(this.#process.files.open()));
  }
  /** One whose loss is no matter. */
  #ownFd(): number {
    const fd = this.#fd();
    return this.#neighbour.fds.includes(fd) ? 4000 : fd;
  }
  #address(): number {
    const values = this.#values;
    return values.pick(this.#addresses) + (values.oneIn(3) ? values.below(64) * PAGE : 0);
  }
  /** A range is none of the neighbour's memory. */
  #spares(address: number, length: number): boolean {
    const { hva, end } = this.#neighbour;
    return !(address < end && address + Math.max(length, 0) + 2 * PAGE > hva) || Number.isNaN(length);
  }
  /** A VM; one whose descriptor is closed is soon forgotten. */
  #machine(): Machine | undefined {
    if (this.#machines.length === 0) return undefined;
    const values = this.#values;
    const at = values.below(this.#machines.length);
    const machine = this.#machines[at]!;
    if (!this.#process.files.open().includes(machine.vm.fd) && values.oneIn(8)) {
      this.#machines.splice(at, 1);
      for (const vcpu of machine.vcpus) this.#call('close of a vCPU', '', () => vcpu.close());
    }
    for (const [index, vcpu] of machine.vcpus.entries())
      if (vcpu.kvmRun.bytes.byteOffset === 0 && values.oneIn(8)) machine.vcpus.splice(index, 1);
    return machine;
  }
  #gpa(): bigint {
    const values = this.#values;
    return values.mostly(values.pages(64), values.u64());
  }

  #withVm(act: (vm: Vm, machine: Machine) => void): () => void {
    return () => {
      const machine = this.#machine();
      if (machine !== undefined) act(machine.vm, machine);
    };
  }
  #withVcpu(act: (vcpu: KvmVcpu, machine: Machine) => void): () => void {
    return () => {
      const machine = this.#machine();
      if (machine !== undefined && machine.vcpus.length > 0) act(this.#values.pick(machine.vcpus), machine);
    };
  }
  /** A call of a vCPU that takes one argument. */
  #vcpuCall<T>(name: string, make: () => T, act: (vcpu: KvmVcpu, argument: T) => unknown): () => void {
    return this.#withVcpu((vcpu) => {
      const argument = make();
      this.#call(`vcpu ${vcpu.id} ${name}`, argument, () => act(vcpu, argument));
    });
  }

  #processActions(): [number, () => void][] {
    const v = this.#values;
    const { memory } = this.#process;
    const process = this.#process;
    const full = (): boolean => process.files.open().length >= MAX_FILES * 3;
    return [
      [2, () => full() || this.#call('openSev', '', () => process.openSev())],
      [
        3,
        () =>
          full() ||
          this.#call('memfd_create', '', () => process.memfdCreate('x'.repeat(v.oneIn(9) ? 250 : 3))),
      ],
      [
        2,
        () => {
          const options = { readOnly: v.oneIn(2) };
          if (!full()) this.#call('open', options, () => process.open(v.pick(['/a', '/b', '/']), options));
        },
      ],
      [
        4,
        () =>
          this.#fileCall('ftruncate', v.mostly(v.pages(64), v.s64()), (fd, size) =>
            process.ftruncate(fd, size),
          ),
      ],
      [2, () => this.#fileCall('fstat', undefined, (fd) => process.fstat(fd))],
      [
        3,
        () =>
          this.#fileCall('pread', v.mostly(v.pages(64), v.s64()), (fd, at) =>
            process.pread(fd, v.bytes(v.below(9000)), at),
          ),
      ],
      [
        3,
        () =>
          this.#fileCall('pwrite', v.mostly(v.pages(64), v.s64()), (fd, at) =>
            process.pwrite(fd, v.bytes(v.below(9000)), at),
          ),
      ],
      [
        8,
        () => {
          const mode = v.mostly(v.pick([0, 1, 3, 3]), v.u32() | 0);
          const offset = v.mostly(v.pages(64), v.s64());
          const length = v.mostly(v.pages(64), v.s64());
          this.#fileCall('fallocate', { mode, offset, length }, (fd) =>
            process.fallocate(fd, mode, offset, length),
          );
        },
      ],
      [
        2,
        () =>
          this.#fileCall('lock', v.pick(['shared', 'exclusive', 'none'] as const), (fd, kind) =>
            process.lock(fd, kind),
          ),
      ],
      [3, () => this.#closeFile()],
      [
        6,
        () => {
          const good = v.pick([0x21, 0x22, 0x22, 0x01, 0x02, 0x12, 0x32]);
          const request = {
            length: v.number((1 + v.below(64)) * PAGE),
            protection: v.mostly(3, v.below(8)),
            flags: v.mostly(good, v.u32() & ~0x8000),
            fd: this.#ownFd(),
            offset: v.mostly(v.pages(8), v.s64()),
            address: this.#address() as Hva,
          };
          if (!this.#spares(request.address, request.length)) return;
          const at = this.#call('mmap', request, () => memory.mmap(request));
          if (at === undefined) return;
          this.#addresses.push(at);
          if (this.#addresses.length > MAX_MAPPINGS) this.#unmap(this.#addresses.shift()!, 64 * PAGE);
        },
      ],
      [2, () => this.#unmap(v.number(this.#address()), v.number(v.below(32) * PAGE))],
      [
        4,
        () => {
          const address = v.number(this.#address()) as Hva;
          const length = v.number(v.below(64) * PAGE);
          const advice = v.mostly(v.pick([4, 9]), v.u32() | 0);
          if (this.#spares(address, length))
            this.#call('madvise', { address, length, advice }, () => memory.madvise(address, length, advice));
        },
      ],
      [4, () => this.#memoryCall('read', (address, bytes) => memory.read(address, bytes))],
      [12, () => this.#memoryCall('write', (address, bytes) => memory.write(address, bytes))],
    ];
  }

  #unmap(address: number, length: number): void {
    if (this.#spares(address, length))
      this.#call('munmap', { address, length }, () => this.#process.memory.munmap(address as Hva, length));
  }
  #memoryCall(name: string, act: (address: Hva, bytes: Uint8Array) => void): void {
    const v = this.#values;
    const address = v.number(this.#address() + v.below(PAGE * 2)) as Hva;
    const bytes = v.oneIn(3) ? v.bytes(v.below(9000)) : v.pick(GUEST_SNIPPETS);
    if (this.#spares(address, bytes.length))
      this.#call(name, { address, bytes: bytes.length }, () => act(address, bytes.slice()));
  }
  #fileCall<T>(name: string, argument: T, act: (fd: number, argument: T) => unknown): void {
    const fd = this.#ownFd();
    this.#call(name, { fd, argument }, () => act(fd, argument));
  }
  #closeFile(): void {
    const v = this.#values;
    const open = this.#process.files.open();
    if (open.length < MAX_FILES && !v.oneIn(4)) return;
    this.#fileCall('close', undefined, (fd) => {
      const { files } = this.#process;
      const isKvm = files.open().includes(fd) && files.get(fd).operations.name.startsWith('anon_inode');
      if (!isKvm || v.oneIn(20)) this.#process.close(fd);
    });
  }

  #kvmActions(): [number, () => void][] {
    const v = this.#values;
    const kvm = (name: string, argument: unknown, act: (kvm: Kvm) => unknown): void => {
      if (this.#kvms.length < 2) {
        const opened = this.#call('openKvm', '', () => this.#process.openKvm());
        if (opened === undefined) return;
        this.#kvms.push(opened);
      }
      const which = v.pick(this.#kvms);
      this.#call(name, argument, () => act(which));
    };
    return [
      [1, () => kvm('getApiVersion', '', (which) => which.getApiVersion())],
      [1, () => kvm('getVcpuMmapSize', '', (which) => which.getVcpuMmapSize())],
      [1, () => kvm('getSupportedCpuid', '', (which) => which.getSupportedCpuid())],
      [1, () => kvm('getMsrIndexList', '', (which) => which.getMsrIndexList())],
      [1, () => kvm('getMsrFeatureIndexList', '', (which) => which.getMsrFeatureIndexList())],
      [
        1,
        () => kvm('kvm.getMsrs', '', (which) => which.getMsrs(v.some(4, () => v.pick([...MSRS, v.u32()])))),
      ],
      [
        2,
        () => {
          const cap = v.mostly(v.pick(CAPABILITIES), v.u32());
          kvm('checkExtension', cap, (which) => which.checkExtension(cap));
        },
      ],
      [
        1,
        () => {
          const request = {
            group: v.pick([0, 1, v.u32()]),
            attr: v.mostly(v.pick([0n, 1n]), v.u64()),
          };
          kvm('getDeviceAttr', request, (which) => which.getDeviceAttr(request));
        },
      ],
      [
        6,
        () => {
          if (this.#machines.length >= MAX_VMS) {
            this.#machines[v.below(MAX_VMS)] = this.#machines.at(-1)!;
            this.#end(this.#machines.pop()!);
          }
          const type = v.mostly(v.pick([0, 1, 1, 4, 4]), v.u32());
          kvm('createVm', type, (which) => {
            const vm = which.createVm(type) as Vm;
            this.#machines.push({ vm, vcpus: [] });
          });
        },
      ],
      [
        1,
        () =>
          v.oneIn(8) &&
          this.#kvms.length > 0 &&
          this.#call('kvm.close', '', () => this.#kvms.shift()!.close()),
      ],
    ];
  }

  /** Closes a VM and its vCPUs in any order, and leaves some open for who holds them. */
  #end({ vm, vcpus }: Machine): void {
    const closings = [() => vm.close(), ...vcpus.map((vcpu) => () => vcpu.close())];
    if (this.#values.bit() === 1) closings.reverse();
    for (const close of closings) this.#call('close of a VM or vCPU', '', close);
  }

  #vmActions(): [number, () => void][] {
    const v = this.#values;
    const call = <T>(
      name: string,
      make: (vm: KvmVm) => T,
      act: (vm: KvmVm, argument: T) => unknown,
    ): (() => void) =>
      this.#withVm((vm) => {
        const argument = make(vm);
        this.#call(`vm ${name}`, argument, () => act(vm, argument));
      });
    const slot = (): number => v.mostly(v.below(4) | (v.oneIn(9) ? 0x10000 : 0), v.u32());
    return [
      [
        1,
        call(
          'checkExtension',
          () => v.pick([...CAPABILITIES, v.u32()]),
          (vm, cap) => vm.checkExtension(cap),
        ),
      ],
      [
        5,
        call(
          'enableCap',
          () => ({
            cap: v.mostly(v.pick(CAPABILITIES), v.u32()),
            flags: v.oneIn(9) ? v.u32() : 0,
            args: v.oneIn(9) ? [] : [v.mostly(v.pick([1n, 2n, 3n, 4096n, 65536n, 24n]), v.u64())],
          }),
          (vm, request) => vm.enableCap(request),
        ),
      ],
      [
        16,
        this.#withVm((vm) => {
          const guestMemfd = v.mostly(this.#fd(), v.u32());
          const region = {
            slot: slot(),
            flags: v.mostly(v.pick([0, 1, 4, 4, 4]), v.u32()),
            guestPhysAddr: v.mostly(v.pick([0n, 0n, v.pages(64)]), v.u64()),
            memorySize: v.mostly(v.pick([0n, 0x1_0000n, 0x4_0000n, v.pages(64)]), v.u64()),
            userspaceAddr: v.mostly(BigInt(this.#address()), v.u64()),
            guestMemfdOffset: v.mostly(v.pick([0n, v.pages(16)]), v.u64()),
            guestMemfd,
          };
          if (!this.#spares(Number(region.userspaceAddr), Number(region.memorySize))) return;
          if (v.oneIn(4)) this.#call('vm setUserMemoryRegion', region, () => vm.setUserMemoryRegion(region));
          else this.#call('vm setUserMemoryRegion2', region, () => vm.setUserMemoryRegion2(region));
        }),
      ],
      [
        6,
        call(
          'createGuestMemfd',
          () => ({
            size: v.mostly(v.pages(128), v.u64()),
            flags: v.mostly(v.pick([0n, 1n, 3n]), v.u64()),
          }),
          (vm, request) => this.#process.files.open().length < MAX_FILES * 3 && vm.createGuestMemfd(request),
        ),
      ],
      [
        14,
        call(
          'setMemoryAttributes',
          () => ({
            address: this.#gpa(),
            size: v.mostly(v.pages(64), v.u64()),
            attributes: v.mostly(v.pick([0n, 8n, 8n]), v.u64()),
            flags: v.oneIn(20) ? v.u64() : 0n,
          }),
          (vm, request) => vm.setMemoryAttributes(request),
        ),
      ],
      [
        6,
        this.#withVm((vm, machine) => {
          if (machine.vcpus.length >= MAX_VCPUS) return;
          const id = v.mostly(v.below(MAX_VCPUS), v.u32());
          const vcpu = this.#call('createVcpu', id, () => vm.createVcpu(id));
          if (vcpu !== undefined) machine.vcpus.push(vcpu);
        }),
      ],
      [
        4,
        call(
          'getDirtyLog',
          () => ({ slot: slot(), bitmap: new Int32Array(v.pick([0, 1, 2, 4, 64])) }),
          (vm, request) => vm.getDirtyLog(request),
        ),
      ],
      [
        4,
        call(
          'clearDirtyLog',
          () => ({
            slot: slot(),
            bitmap: new Int32Array(v.pick([0, 1, 2, 4, 64])).fill(-v.bit()),
            firstPage: v.mostly(v.pick([0n, 64n, 128n]), v.u64()),
            numPages: v.mostly(v.pick([64, 16, 128, 0]), v.u32()),
          }),
          (vm, request) => vm.clearDirtyLog(request),
        ),
      ],
      [
        2,
        call(
          'resetDirtyRings',
          () => '',
          (vm) => vm.resetDirtyRings(),
        ),
      ],
      [
        2,
        call(
          'setMsrFilter',
          () => ({
            flags: v.mostly(v.bit(), v.u32()),
            ranges: v.some(v.oneIn(9) ? 20 : 3, () => ({
              flags: v.mostly(1 + v.below(3), v.u32()),
              base: v.mostly(v.pick(MSRS), v.u32()),
              nmsrs: v.mostly(v.below(128), v.u32()),
              bitmap: v.bytes(v.pick([0, 1, 16, 16, 0x600])),
            })),
          }),
          (vm, filter) => vm.setMsrFilter(filter),
        ),
      ],
      [
        1,
        call(
          'createIrqchip',
          () => '',
          (vm) => vm.createIrqchip(),
        ),
      ],
      [
        1,
        call(
          'setBootCpuId',
          () => v.mostly(v.below(4), v.u32()),
          (vm, id) => vm.setBootCpuId(id),
        ),
      ],
      [
        3,
        call(
          'irqLine',
          () => ({
            irq: v.mostly(v.below(32), v.u32()),
            level: v.below(3),
          }),
          (vm, request) => vm.irqLine(request),
        ),
      ],
      [
        4,
        call(
          'signalMsi',
          () => ({
            addressLo: v.mostly(0xfee0_0000 | (v.u32() & 0xf_ffff), v.u32()) >>> 0,
            addressHi: v.oneIn(4) ? v.u32() : 0,
            data: v.mostly(v.u16() & 0x47ff, v.u32()),
            flags: v.oneIn(9) ? v.u32() : 0,
            devid: v.u32(),
          }),
          (vm, message) => vm.signalMsi(message),
        ),
      ],
      [
        2,
        call(
          'setGsiRouting',
          () => ({
            routes: v.some(6, () => ({
              gsi: v.mostly(v.below(32), v.u32()),
              type: v.mostly(2, v.u32()),
              flags: v.oneIn(9) ? v.u32() : 0,
              msi: { addressLo: (0xfee0_0000 | (v.u32() & 0xf_ffff)) >>> 0, addressHi: 0, data: v.u16() },
            })),
            flags: v.oneIn(9) ? v.u32() : 0,
          }),
          (vm, request) => vm.setGsiRouting(request),
        ),
      ],
      [
        14,
        call(
          'memoryEncryptOp',
          () => this.#sevCommand(),
          (vm, command) => vm.memoryEncryptOp(command),
        ),
      ],
      [3, this.#withVm((vm, { vcpus }) => this.#prepareSnp(vm, vcpus))],
      [8, this.#withVm((vm, machine) => this.#furnish(vm, machine))],
    ];
  }

  #sevFd(): number {
    const fds = this.#process.files
      .open()
      .filter((fd) => this.#process.files.get(fd).operations.name === '/dev/sev');
    return this.#values.mostly(fds.at(-1) ?? 5, this.#fd());
  }

  #sevCommand(): SevCommand | undefined {
    const v = this.#values;
    const sevFd = this.#sevFd();
    const flags = v.oneIn(9) ? v.u16() : 0;
    switch (v.below(9)) {
      case 0:
        return undefined;
      case 1:
        return { id: v.u32(), sevFd } as SevCommand;
      case 2:
        return { id: 103, sevFd };
      case 3:
        return {
          id: 22,
          sevFd,
          data: {
            vmsaFeatures: v.mostly(0n, v.u64()),
            flags,
            ghcbVersion: v.mostly(2 * v.bit(), v.u16()),
          },
        };
      case 4:
        return {
          id: 100,
          sevFd,
          data: {
            policy: v.mostly(v.pick([0x30000n, 0xb0000n]), v.u64()),
            gosvw: v.bytes(16),
            flags,
          },
        };
      case 5: {
        const id = v.oneIn(3)
          ? { block: v.bytes(96), auth: v.bytes(4096), authorKeyEnabled: v.bit() === 1 }
          : undefined;
        return {
          id: 102,
          sevFd,
          data: { ...(id && { id }), vcekDisabled: v.bit() === 1, hostData: v.bytes(32), flags },
        };
      }
      default: {
        const uaddr = v.mostly(BigInt(this.#address()), v.u64());
        const len = v.mostly(v.pages(8), v.u64());
        return {
          id: 101,
          sevFd,
          data: {
            gfnStart: v.mostly(v.pages(64) / 4096n, v.u64()),
            uaddr: this.#spares(Number(uaddr), Number(len)) ? uaddr : 0x10000n,
            len,
            type: v.mostly(v.pick([1, 3, 4, 5, 6]), v.u8()),
            flags,
          },
        };
      }
    }
  }

  /** The launch of an SNP guest in its right order, so that what comes after it is reached. */
  #prepareSnp(vm: KvmVm, vcpus: KvmVcpu[]): void {
    const v = this.#values;
    const steps: (() => void)[] = [
      () =>
        vm.memoryEncryptOp({
          id: 22,
          sevFd: this.#sevFd(),
          data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 2 },
        }),
      () => void (vcpus.length === 0 && vcpus.push(vm.createVcpu(0))),
      () =>
        vm.memoryEncryptOp({
          id: 100,
          sevFd: this.#sevFd(),
          data: { policy: 0x30000n, gosvw: new Uint8Array(16), flags: 0 },
        }),
      () => vm.setMemoryAttributes({ address: 0n, size: 0x10000n, attributes: 8n, flags: 0n }),
      () => {
        const uaddr = BigInt(this.#address());
        if (this.#spares(Number(uaddr), 0x10000))
          vm.memoryEncryptOp({
            id: 101,
            sevFd: this.#sevFd(),
            data: { gfnStart: 0n, uaddr, len: 0x8000n, type: v.pick([1, 3]), flags: 0 },
          });
      },
      () =>
        vm.memoryEncryptOp({
          id: 102,
          sevFd: this.#sevFd(),
          data: { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0 },
        }),
    ];
    for (const [index, step] of steps.entries())
      if (!v.oneIn(12)) this.#call(`SNP launch, step ${index}`, '', step);
  }

  #vcpuActions(): [number, () => void][] {
    const v = this.#values;
    const c = <T>(
      weight: number,
      name: string,
      make: () => T,
      act: (vcpu: KvmVcpu, argument: T) => unknown,
    ): [number, () => void] => [weight, this.#vcpuCall(name, make, act)];
    const none = (): undefined => undefined;
    return [
      [90, this.#withVcpu((vcpu, machine) => this.#runVcpu(vcpu, machine))],
      [12, this.#withVcpu((vcpu) => this.#boot(vcpu))],
      c(2, 'getRegs', none, (vcpu) => vcpu.getRegs()),
      [4, this.#withVcpu((vcpu) => this.#setRegs(vcpu))],
      c(2, 'getSregs', none, (vcpu) => vcpu.getSregs()),
      [4, this.#withVcpu((vcpu) => this.#setSregs(vcpu))],
      c(1, 'getCpuid2', none, (vcpu) => vcpu.getCpuid2()),
      c(
        2,
        'setCpuid2',
        () => this.#cpuid(),
        (vcpu, entries) => vcpu.setCpuid2(entries),
      ),
      c(
        4,
        'interrupt',
        () => v.mostly(v.below(256), v.u32()),
        (vcpu, vector) => vcpu.interrupt(vector),
      ),
      c(2, 'nmi', none, (vcpu) => vcpu.nmi()),
      c(1, 'getVcpuEvents', none, (vcpu) => vcpu.getVcpuEvents()),
      c(
        4,
        'setVcpuEvents',
        () => ({
          exception: {
            injected: v.bit(),
            nr: v.mostly(v.below(32), v.u8()),
            hasErrorCode: v.bit(),
            pending: v.bit(),
            errorCode: v.u32(),
          },
          interrupt: { injected: v.bit(), nr: v.u8(), soft: v.bit(), shadow: v.below(4) },
          nmi: { injected: v.bit(), pending: v.u8(), masked: v.bit() },
          sipiVector: v.u32(),
          flags: v.mostly(v.below(64), v.u32()),
          smi: {
            smm: v.oneIn(9) ? v.u8() : 0,
            pending: v.oneIn(9) ? v.u8() : 0,
            smmInsideNmi: v.bit(),
            latchedInit: v.bit(),
          },
          tripleFaultPending: v.bit(),
          exceptionHasPayload: v.bit(),
          exceptionPayload: v.u64(),
        }),
        (vcpu, events) => vcpu.setVcpuEvents(events),
      ),
      c(1, 'getDebugRegs', none, (vcpu) => vcpu.getDebugRegs()),
      c(
        2,
        'setDebugRegs',
        () => ({
          db: v.some(4, () => v.u64()),
          dr6: v.u64(),
          dr7: v.u64(),
          flags: v.oneIn(9) ? v.u64() : 0n,
        }),
        (vcpu, registers) => vcpu.setDebugRegs(registers),
      ),
      c(
        3,
        'setGuestDebug',
        () => ({
          control: v.mostly(v.pick([0, 1, 3, 0x10001, 0x20001, 0x40001]), v.u32()),
          debugreg: v.some(8, () => v.u64()),
        }),
        (vcpu, request) => vcpu.setGuestDebug(request),
      ),
      c(1, 'getFpu', none, (vcpu) => vcpu.getFpu()),
      c(
        1,
        'setFpu',
        () => ({
          fpr: v.some(8, () => v.bytes(16)),
          fcw: v.u16(),
          fsw: v.u16(),
          ftwx: v.u8(),
          lastOpcode: v.u16(),
          lastIp: v.u64(),
          lastDp: v.u64(),
          xmm: v.some(16, () => v.bytes(16)),
          mxcsr: v.u32(),
        }),
        (vcpu, fpu) => vcpu.setFpu(fpu),
      ),
      c(1, 'getXsave', none, (vcpu) => vcpu.getXsave()),
      c(1, 'getXsave2', none, (vcpu) => vcpu.getXsave2()),
      c(
        2,
        'setXsave',
        () => this.#xsave(),
        (vcpu, image) => vcpu.setXsave(image),
      ),
      c(1, 'getXcrs', none, (vcpu) => vcpu.getXcrs()),
      c(
        1,
        'setXcrs',
        () => ({
          flags: v.oneIn(9) ? v.u32() : 0,
          xcrs: v.some(v.oneIn(9) ? 18 : 2, () => ({
            xcr: v.mostly(0, v.u32()),
            value: v.mostly(v.pick([1n, 3n]), v.u64()),
          })),
        }),
        (vcpu, xcrs) => vcpu.setXcrs(xcrs),
      ),
      c(
        2,
        'getMsrs',
        () => v.some(5, () => v.pick([...MSRS, v.u32()])),
        (vcpu, indices) => vcpu.getMsrs(indices),
      ),
      c(
        4,
        'setMsrs',
        (): MsrEntry[] => v.some(4, () => ({ index: v.pick([...MSRS, v.u32()]), data: v.u64() })),
        (vcpu, entries) => vcpu.setMsrs(entries),
      ),
      c(
        2,
        'translate',
        () => v.u64(),
        (vcpu, address) => vcpu.translate(address),
      ),
      c(1, 'getTscKhz', none, (vcpu) => vcpu.getTscKhz()),
      c(
        1,
        'setTscKhz',
        () => v.u32(),
        (vcpu, khz) => vcpu.setTscKhz(khz),
      ),
      c(
        4,
        'preFaultMemory',
        () => ({
          gpa: this.#gpa(),
          size: v.mostly(v.pages(16), v.u64()),
          flags: v.oneIn(9) ? v.u64() : 0n,
        }),
        (vcpu, range) => vcpu.preFaultMemory(range),
      ),
      c(1, 'getLapic', none, (vcpu) => vcpu.getLapic()),
      c(
        2,
        'setLapic',
        () => v.bytes(1024),
        (vcpu, state) => vcpu.setLapic(state),
      ),
      c(1, 'getMpState', none, (vcpu) => vcpu.getMpState()),
      c(
        2,
        'setMpState',
        () => v.mostly(v.pick([0, 0, 1, 2, 3, 4]), v.u32()),
        (vcpu, state) => vcpu.setMpState(state),
      ),
      c(1, 'ready', none, (vcpu) => vcpu.ready),
      c(1, 'instructions', none, (vcpu) => expect(vcpu.instructions).toBeGreaterThanOrEqual(0)),
      c(1, 'vcpu.close', none, (vcpu) => v.oneIn(6) && vcpu.close()),
    ];
  }

  #runVcpu(vcpu: KvmVcpu, machine: Machine): void {
    const v = this.#values;
    this.#scribble(vcpu);
    for (let turn = v.below(4); turn >= 0; turn--) {
      const note = this.#note(`vcpu ${vcpu.id} run`, `machine ${this.#machines.indexOf(machine)}`);
      this.counts.runs++;
      this.#explained(() => {
        const result = vcpu.run();
        const reason = vcpu.kvmRun.exitReason;
        note.outcome = `= ${result}, exit ${reason}`;
        const key = result === 0 || result === -14 ? `${result} exit ${reason}` : `${result}`;
        this.counts.exits.set(key, (this.counts.exits.get(key) ?? 0) + 1);
        if (!RUN_RESULTS.has(result)) throw new Error(`KVM_RUN returned ${result}`);
        if (result === 0 && !EXIT_REASONS.has(reason)) throw new Error(`exit reason ${reason}`);
        if (result === 1 && vcpu.pending === undefined) throw new Error('RUN_PENDING without a promise');
      });
    }
  }

  /** User space writes what it shares with the vCPU: fields that count, any bytes, the dirty ring. */
  #scribble(vcpu: KvmVcpu): void {
    const v = this.#values;
    if (vcpu.kvmRun.bytes.length === 0) return;
    if (v.oneIn(3)) {
      vcpu.kvmRun.immediateExit = v.oneIn(6) ? 1 : 0;
      vcpu.kvmRun.requestInterruptWindow = v.oneIn(6) ? 1 : 0;
    }
    if (v.oneIn(6))
      for (let i = v.below(24); i > 0; i--)
        vcpu.kvmRun.bytes[v.below(v.bit() === 1 ? 0x120 : 0x3000)] = v.u8();
    const ring = vcpu.dirtyRing;
    if (ring !== undefined && ring.length > 0 && v.oneIn(4)) {
      for (let entry = 0; entry < 64 && v.bit() === 1; entry++)
        ring[entry * 4] = v.pick([2, 2, 2, 3, 1, 0, v.u32() | 0]);
      if (v.oneIn(8)) ring[v.below(ring.length)] = v.u32() | 0;
    }
  }

  #setRegs(vcpu: KvmVcpu): void {
    this.#call(`vcpu ${vcpu.id} setRegs`, '', () => {
      const regs = { ...vcpu.getRegs() };
      const v = this.#values;
      for (const name of Object.keys(regs) as (keyof typeof regs)[])
        if (v.oneIn(3)) regs[name] = v.bit() === 1 ? v.pages(64) : v.u64();
      vcpu.setRegs(regs);
    });
  }

  #segment(segment: Segment): Segment {
    const v = this.#values;
    if (v.oneIn(2)) return segment;
    const bits = {
      present: v.bit(),
      db: v.bit(),
      s: v.bit(),
      l: v.bit(),
      g: v.bit(),
      avl: v.bit(),
      unusable: v.bit(),
    };
    return {
      ...segment,
      base: v.u64(),
      limit: v.u32(),
      selector: v.u16(),
      type: v.below(16),
      dpl: v.below(4),
      ...bits,
    };
  }

  #setSregs(vcpu: KvmVcpu): void {
    const v = this.#values;
    this.#call(`vcpu ${vcpu.id} setSregs`, '', () => {
      const sregs = { ...vcpu.getSregs() };
      for (const name of ['cs', 'ds', 'es', 'fs', 'gs', 'ss', 'tr', 'ldt'] as const)
        if (v.oneIn(6)) sregs[name] = this.#segment(sregs[name]);
      for (const name of ['gdt', 'idt'] as const)
        if (v.oneIn(6)) sregs[name] = { base: v.u64(), limit: v.u16() };
      for (const name of ['cr0', 'cr2', 'cr3', 'cr4', 'cr8', 'efer', 'apicBase'] as const) {
        if (v.oneIn(8)) sregs[name] = v.bit() === 1 ? sregs[name] ^ (1n << BigInt(v.below(64))) : v.u64();
      }
      if (v.oneIn(8)) sregs.interruptBitmap = [0n, v.u64(), 0n, v.u64()];
      vcpu.setSregs(sregs);
    });
  }

  /** 64 pages of guest memory with page tables at 0 and something to execute in each page from 2 on, so that guests do get somewhere. */
  #furnish(vm: Vm, machine: Machine): void {
    const v = this.#values;
    const { memory } = this.#process;
    this.#call('furnish', vm.type, () => {
      const at = memory.mmap({ length: 64 * PAGE, protection: 3, flags: v.pick([0x21, 0x22]) });
      this.#addresses.push(at);
      memory.write(at, LARGE_MAP);
      for (let page = 2; page < 40; page++)
        memory.write((at + page * PAGE) as Hva, v.pick(GUEST_SNIPPETS).subarray(0, PAGE));
      const withFile = vm.type !== 0 && v.bit() === 1;
      const slot = { slot: v.below(2), guestPhysAddr: 0n, memorySize: 0x40000n, userspaceAddr: BigInt(at) };
      const guestMemfd = withFile ? vm.createGuestMemfd({ size: 0x40000n, flags: 0n }) : 0;
      vm.setUserMemoryRegion2({ ...slot, flags: withFile ? 4 : v.bit(), guestMemfd, guestMemfdOffset: 0n });
      if (machine.vcpus.length < MAX_VCPUS) machine.vcpus.push(vm.createVcpu(v.below(MAX_VCPUS)));
    });
    for (const vcpu of machine.vcpus) this.#boot(vcpu);
  }

  /** A state in which guest code runs: real mode, protected mode, or long mode with the page tables at CR3. */
  #boot(vcpu: KvmVcpu): void {
    const v = this.#values;
    this.#call(`vcpu ${vcpu.id} boot`, '', () => {
      if (vcpu.getCpuid2().length === 0) vcpu.setCpuid2(this.#kvms[0]?.getSupportedCpuid() ?? []);
      const sregs = vcpu.getSregs();
      const long = v.mostly(1, 0);
      const flat = { base: 0n, limit: 0xffffffff, present: 1, dpl: 0, s: 1, g: 1, avl: 0, unusable: 0 };
      const data = { ...flat, selector: 16, type: 3, db: 1, l: 0 };
      const protectedMode = {
        cs: { ...flat, selector: 8, type: 11, db: 1 - long, l: long },
        ds: data,
        es: data,
        ss: data,
        cr0: long === 1 ? 0x80010033n : 0x11n,
        cr3: v.mostly(0n, v.pages(16)),
        cr4: 0x620n,
        efer: long === 1 ? 0xd00n : 0n,
      };
      const cs = { ...sregs.cs, base: 0n, selector: 0 };
      vcpu.setSregs(v.oneIn(6) ? { ...sregs, cs } : { ...sregs, ...protectedMode });
      const addresses = { rdi: v.pages(64), rsi: v.pages(64), rsp: 0x8000n };
      const rflags = 2n | BigInt(v.bit() << 9);
      vcpu.setRegs({
        ...vcpu.getRegs(),
        ...addresses,
        rip: v.mostly(0x2000n + v.pages(37), v.u64()),
        rflags,
      });
    });
  }

  #cpuid(): CpuidEntry[] {
    const v = this.#values;
    const supported = v.oneIn(3) ? [] : (this.#kvms[0]?.getSupportedCpuid() ?? []);
    const odd = v.some(v.oneIn(20) ? 300 : 2, () => ({
      function: v.pick([0, 1, 7, 0xd, 0x8000_0000, 0x8000_0008, v.u32()]),
      index: v.below(3),
      flags: v.below(8),
      eax: v.u32(),
      ebx: v.u32(),
      ecx: v.u32(),
      edx: v.u32(),
    }));
    return [...supported, ...odd];
  }

  #xsave(): Uint8Array {
    const v = this.#values;
    const image = v.bytes(v.mostly(4096, v.below(5000)));
    if (image.length >= 576 && !v.oneIn(4)) {
      image.fill(0, 512, 576);
      image[512] = v.below(4);
      image.fill(0, 26, 28);
    }
    return image;
  }
}

const inspect = (value: unknown): string =>
  JSON.stringify(value, (_, item: unknown) =>
    typeof item === 'bigint'
      ? `0x${item.toString(16)}`
      : ArrayBuffer.isView(item)
        ? `${item.byteLength} bytes`
        : item,
  ) ?? '';
