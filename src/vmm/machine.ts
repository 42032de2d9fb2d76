/**
 * A machine: RAM, vCPUs, a serial port, a port that ends the run, and an image to start (what QEMU's machine types and
 * accelerator wiring do, for the least machine that runs a guest).
 *
 *     const machine = createMachine(process, { type: 'sw-protected', memory: 64 * MiB, smp: 1, image, imageName, bootStub, console });
 *     const end = await machine.run({ timeoutMs: 10_000 });
 *     machine.close();
 *
 * With local APICs in the kernel there is an IOAPIC, to which the serial port's interrupt goes. Leaves out: migration.
 */
import {
  KVM_CAP_EXIT_HYPERCALL,
  KVM_CAP_MAX_VCPUS,
  KVM_CAP_NR_VCPUS,
  KVM_CAP_SPLIT_IRQCHIP,
  KVM_HC_MAP_GPA_RANGE,
  KVM_MEM_MAX_NR_PAGES,
  KVM_X86_DEFAULT_VM,
  KVM_X86_SNP_VM,
  KVM_X86_SW_PROTECTED_VM,
} from '../abi/kvm.ts';
import { PAGE_SIZE } from '../base/address.ts';
import type { Entropy } from '../base/entropy.ts';
import { LinuxError, NotImplementedError } from '../base/errors.ts';
import { Trace } from '../base/trace.ts';
import type { KvmVcpu, Process } from '../kernel/interface.ts';
import { anonymousBackend } from './backends/anonymous.ts';
import { fileBackend } from './backends/file.ts';
import { memfdBackend } from './backends/memfd.ts';
import type { MemoryBackendOptions } from './backends/memory-backend.ts';
import { type CertificateOptions, CertificateSource } from './confidential-guest/certificate-source.ts';
import { SevSnpGuest, type SevSnpGuestProperties } from './confidential-guest/sev-snp-guest.ts';
import { ConsoleBuffer } from './devices/console-buffer.ts';
import { DEBUG_EXIT_PORT, DEBUG_EXIT_PORTS, DebugExit } from './devices/debug-exit.ts';
import { IOAPIC_ADDRESS, IOAPIC_BYTES, IOAPIC_PINS, Ioapic } from './devices/ioapic.ts';
import { RESET_CONTROL_PORT, RESET_CONTROL_PORTS, ResetControl } from './devices/reset-control.ts';
import { SERIAL_PORT, SERIAL_PORTS, Serial16550 } from './devices/serial-16550.ts';
import { DirtyLog } from './dirty-log.ts';
import { VmmError } from './error.ts';
import { cpuidOf, snpCpuid, withSignature } from './guest-cpuid.ts';
import { KvmState } from './kvm-state.ts';
import type { KernelFiles } from './loaders/kernel-hashes.ts';
import { hostPage, SNP_BOOT, snpCpuidTable } from './loaders/snp-boot.ts';
import { AddressSpace } from './memory/address-space.ts';
import { convertMemory } from './memory/convert-memory.ts';
import { DiscardRequirements } from './memory/discard-requirements.ts';
import { IoDispatch } from './memory/io-dispatch.ts';
import { KvmDirtyLog } from './memory/kvm-dirty-log.ts';
import { KvmSlots } from './memory/kvm-slots.ts';
import { containerRegion, ioRegion, type MemoryRegion, ramPointer } from './memory/memory-region.ts';
import { MemoryTopology } from './memory/memory-topology.ts';
import { RamDirtyPages } from './memory/ram-dirty-pages.ts';
import { RamList } from './memory/ram-list.ts';
import { MissingDevices } from './missing-devices.ts';
import { type Board, loadPayload, type Placed, placePayload } from './payload.ts';
import { type ExitCounts, type RunEnd, RunLoop, type RunOptions } from './run-loop.ts';

/** ISA's interrupt of the first serial port. */
const SERIAL_IRQ = 4;

const VM_TYPES = {
  default: KVM_X86_DEFAULT_VM,
  'sw-protected': KVM_X86_SW_PROTECTED_VM,
  'sev-snp': KVM_X86_SNP_VM,
} as const;
/** Of every chip so far. */
const C_BIT = 51;

export interface MachineOptions {
  /** `sw-protected`, `sev-snp`: RAM is private from the start, with a guest_memfd. */
  readonly type: 'sw-protected' | 'sev-snp' | 'default';
  /** Bytes of RAM, whole pages. */
  readonly memory: number;
  /** Number of vCPUs. */
  readonly smp: number;
  /** CPUID 1 EAX of the vCPUs (QEMU's -cpu, as far as the signature goes); absent: the host's (-cpu host). */
  readonly vcpuSignature?: number;
  readonly image: Uint8Array;
  /** For messages; a name that ends in `.bin` says that the image is a flat binary, one in `.fd` that it is firmware. */
  readonly imageName: string;
  /** guests/prebuilt/boot.bin */
  readonly bootStub: Uint8Array;
  /** Gets what the guest writes to its serial port. The bytes are the receiver's to keep. */
  readonly console: (bytes: Uint8Array) => void;
  /** Where the local APICs are: `split` in the kernel (QEMU's -machine kernel-irqchip=split), `off` nowhere. Absent: off. */
  readonly irqchip?: 'split' | 'off';
  readonly trace?: Trace;
  /** What an SNP guest is launched with. */
  readonly snp?: SnpMachineOptions;
  /** Entries of each vCPU's dirty ring, a power of two (QEMU's -accel kvm,dirty-ring-size); absent or 0: KVM's bitmaps. */
  readonly dirtyRingSize?: number;
  /** Draws the lengths of vCPUs' turns; all alike when absent. */
  readonly turns?: Entropy;
  /** Where the RAM comes from; anonymous memory when absent. */
  readonly backend?: { kind: 'anonymous' } | { kind: 'memfd' } | { kind: 'file'; path: string };
}

export interface SnpMachineOptions {
  readonly guest?: SevSnpGuestProperties;
  /** Position of the C-bit, which the page tables are made with. */
  readonly cBit?: number;
  /** Certificates for extended guest requests; absent: the guest gets none. */
  readonly certificates?: CertificateOptions;
  /** At most 64 bytes, which the guest finds in a page that is not measured. */
  readonly guestData?: Uint8Array;
  /** With kernel-hashes: what firmware is told the hashes of. */
  readonly kernel?: KernelFiles;
}

export interface RunResult extends RunEnd {
  readonly exits: ExitCounts;
  /** Instructions that all vCPUs retired; NaN where the kernel cannot tell. */
  readonly instructions: number;
  /** Changes of a page between private and shared since the start; out and back counts two. */
  readonly conversions: number;
  /** Pages of RAM that are private now. */
  readonly privatePages: number;
}

/** Sets up a machine up to the first entry. Throws VmmError, or LinuxError from a system call; then nothing is left behind. */
export function createMachine(process: Process, options: MachineOptions): Machine {
  return new Machine(process, options);
}

export class Machine {
  readonly kvm: KvmState;
  readonly topology = new MemoryTopology();
  readonly systemMemory: AddressSpace;
  readonly ports: AddressSpace;
  readonly ramList: RamList;
  readonly discards = new DiscardRequirements();
  readonly slots: KvmSlots;
  readonly ram: MemoryRegion;
  /** Which pages of RAM the guest writes to; nothing is noted until it is started. */
  readonly dirtyLog: DirtyLog;
  readonly vcpus: readonly KvmVcpu[];
  readonly serial: Serial16550;
  /** The confidential-guest object, of an SNP guest. */
  readonly snp: SevSnpGuest | undefined;
  readonly certificates: CertificateSource | undefined;
  /** Pages that were measured at the launch, VMSAs not counted. */
  readonly launchedPages: number;
  readonly #loop: RunLoop;
  readonly #missingDevices = new MissingDevices();
  /** Undoes what was set up, last first. */
  readonly #cleanups: (() => void)[] = [];
  #lastReport = '';
  #closed = false;

  constructor(process: Process, options: MachineOptions) {
    const { memory, smp } = options;
    if (!Number.isSafeInteger(memory) || memory < PAGE_SIZE || memory % PAGE_SIZE !== 0) {
      throw new VmmError(`memory: got ${memory} bytes, want a positive multiple of ${PAGE_SIZE}`);
    }
    if (memory > KVM_MEM_MAX_NR_PAGES * PAGE_SIZE) {
      throw new VmmError(
        `memory: got ${memory} bytes, want at most ${KVM_MEM_MAX_NR_PAGES * PAGE_SIZE}, what one memory slot holds`,
      );
    }
    if (!Number.isSafeInteger(smp) || smp < 1) throw new VmmError(`smp: got ${smp}, want an integer from 1`);
    const isSnp = options.type === 'sev-snp';
    const payload = loadPayload(options);
    const isPrivate = options.type === 'sw-protected' || isSnp;
    const trace = options.trace ?? new Trace();
    const report = (message: string): void => {
      this.#lastReport = message;
      if (trace.on) trace.emit({ kind: 'vm', who: 'vmm', what: 'report', why: message });
    };
    try {
      this.kvm = KvmState.open(process, VM_TYPES[options.type]);
      this.#cleanups.push(() => this.kvm.close());
      checkVcpuCount(this.kvm, smp);
      if (isPrivate) enableMapGpaRange(this.kvm);
      const irqchip = options.irqchip ?? 'off';
      if (irqchip === 'split') splitIrqchip(this.kvm);

      this.systemMemory = new AddressSpace(this.topology, 'memory', containerRegion('system', 2 ** 52));
      const dirtyPages = new RamDirtyPages();
      const kvmDirtyLog = new KvmDirtyLog({
        kvm: this.kvm,
        ram: dirtyPages,
        ringEntries: options.dirtyRingSize ?? 0,
        vcpus: () => this.vcpus,
      });
      this.slots = new KvmSlots(this.kvm, kvmDirtyLog);
      this.systemMemory.addListener(this.slots);
      this.ramList = new RamList({ process, kvm: this.kvm, discards: this.discards, report });

      this.snp = isSnp ? new SevSnpGuest(options.snp?.guest) : undefined;
      this.#cleanups.push(() => this.snp?.close(process));
      this.snp?.kvmInit(process, this.kvm, {
        cBit: options.snp?.cBit ?? C_BIT,
        certificates: options.snp?.certificates !== undefined,
      });

      this.ram = this.#addRam(
        0,
        ramFromBackend(options.backend ?? { kind: 'anonymous' }, process, this.ramList, {
          name: 'pc.ram',
          size: memory,
          sharing:
            options.backend?.kind === undefined || options.backend.kind === 'anonymous'
              ? 'private'
              : 'shared',
          guestMemfd: isPrivate ? 'required' : 'none',
        }),
      );
      this.dirtyLog = new DirtyLog({ topology: this.topology, ram: this.ram, pages: dirtyPages });
      const supported = this.kvm.kvm.getSupportedCpuid();
      const cpuid =
        options.vcpuSignature === undefined ? supported : withSignature(supported, options.vcpuSignature);
      const board: Board = {
        process,
        topology: this.topology,
        systemMemory: this.systemMemory,
        ramList: this.ramList,
        ram: this.ram,
        addRam: (at, region) => this.#addRam(at, region),
        atClose: (undo) => void this.#cleanups.push(undo),
      };
      const boot = placePayload(board, payload, options, cpuid);

      const output = new ConsoleBuffer(options.console);
      const debugExit = new DebugExit();
      const ioapic = irqchip === 'split' ? new Ioapic(this.kvm.vm) : undefined;
      if (ioapic !== undefined)
        this.systemMemory.add(ioRegion('ioapic', IOAPIC_BYTES, ioapic), IOAPIC_ADDRESS);
      this.serial = new Serial16550({
        transmit: (byte) => output.put(byte),
        ...(ioapic === undefined ? {} : { interrupt: (level) => ioapic.setLine(SERIAL_IRQ, level) }),
      });
      this.ports = new AddressSpace(this.topology, 'I/O', containerRegion('io', 0x10000));
      this.ports.add(ioRegion('serial', SERIAL_PORTS, this.serial), SERIAL_PORT);
      this.ports.add(ioRegion('debug-exit', DEBUG_EXIT_PORTS, debugExit), DEBUG_EXIT_PORT);
      const resetControl = new ResetControl();
      this.ports.add(ioRegion('reset-control', RESET_CONTROL_PORTS, resetControl), RESET_CONTROL_PORT);

      const sevLeaf = {
        cBit: options.snp?.cBit ?? C_BIT,
        reducedPhysBits: options.snp?.guest?.['reduced-phys-bits'] ?? 1,
      };
      this.vcpus = Array.from({ length: smp }, (_, index) => {
        const vcpu = this.kvm.vm.createVcpu(index);
        this.#cleanups.push(() => vcpu.close());
        vcpu.setCpuid2(cpuidOf(isSnp ? snpCpuid(cpuid, sevLeaf) : cpuid, index, irqchip));
        // With local APICs, the others wait for INIT and SIPI; in an SNP guest with what is measured of them.
        if (irqchip === 'split' && index > 0 && !isSnp) return vcpu;
        vcpu.setSregs(boot.start.sregs(index, vcpu.getSregs()));
        vcpu.setRegs(boot.start.regs(index));
        return vcpu;
      });
      this.launchedPages = this.snp === undefined ? 0 : this.#launch(process, this.snp, boot, options);
      const { certificates } = options.snp ?? {};
      this.certificates =
        certificates === undefined
          ? undefined
          : new CertificateSource(process, certificates, (gpa, bytes) =>
              process.memory.write(ramPointer(this.ram, gpa), bytes),
            );

      const context = { kvm: this.kvm, process, systemMemory: this.systemMemory, report };
      this.#loop = new RunLoop({
        turns: options.turns,
        vcpus: this.vcpus,
        ports: new IoDispatch(this.ports, {
          unassigned: 0xff,
          onUnassigned: (port) => this.#missingDevices.note(port),
        }),
        memory: new IoDispatch(this.systemMemory, { unassigned: 0, process: process.memory }),
        debugExit,
        resetControl,
        reset: () => this.reset(),
        endOfInterrupt: (vector) => ioapic?.endOfInterrupt(vector),
        convert: (start, size, to) => convertMemory(context, start, size, to),
        preFaultSupported: this.kvm.preFaultSupported,
        dirtyRingFull: () => kvmDirtyLog.reap(),
        lastReport: () => this.#lastReport,
        flushConsole: () => output.flush(),
        certificates: this.certificates,
        trace,
      });
    } catch (error) {
      this.close();
      throw error;
    }
  }

  /** Runs the guest until it ends or time is up. */
  async run(options: RunOptions = {}): Promise<RunResult> {
    const end = this.#missingDevices.explain(await this.#loop.run(options));
    const attributes = this.ram.ramBlock?.attributes;
    return {
      ...end,
      exits: { ...this.#loop.exits },
      instructions: this.vcpus.reduce((sum, vcpu) => sum + vcpu.instructions, 0),
      conversions: attributes?.changedPages ?? 0,
      privatePages: attributes === undefined ? 0 : this.ram.size / PAGE_SIZE - attributes.populatedPages,
    };
  }

  /** qemu_system_reset_request. Throws VmmError: registers of vCPUs whose state is protected cannot be set anew (kvm_cpus_are_resettable). */
  reset(): void {
    if (this.snp !== undefined) throw new VmmError('cpus are not resettable, terminating');
    throw new NotImplementedError('system reset');
  }

  /** Gives back everything that the machine holds. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    for (const cleanup of this.#cleanups.reverse()) cleanup();
  }

  /** What is queued becomes the guest's; GHCB and host's page stay shared, but for firmware, which asks for pages itself. Returns how many pages. */
  #launch(process: Process, snp: SevSnpGuest, boot: Placed, options: MachineOptions): number {
    boot.queue(snp, snpCpuidTable(this.vcpus[0]!.getCpuid2()));
    snp.expectVcpus(this.vcpus);
    const pages = snp.finishLaunch(process, this.kvm);
    for (const gpa of boot.shared) {
      const result = this.kvm.setMemoryAttributesShared(gpa, PAGE_SIZE);
      if (result !== 0) throw new VmmError(`sev-snp-guest: page ${gpa} cannot be shared`, -result);
    }
    const guestData = options.snp?.guestData ?? new Uint8Array(0);
    process.memory.write(
      ramPointer(this.ram, SNP_BOOT.HOST_PAGE),
      hostPage({ memory: options.memory, smp: options.smp, guestData }),
    );
    return pages;
  }

  #addRam(at: number, region: MemoryRegion): MemoryRegion {
    const { ramBlock } = region;
    this.#cleanups.push(() => {
      if (ramBlock !== undefined) this.ramList.free(ramBlock);
    });
    this.systemMemory.add(region, at);
    this.#cleanups.push(() => this.systemMemory.remove(region));
    return region;
  }
}

function ramFromBackend(
  backend: NonNullable<MachineOptions['backend']>,
  process: Process,
  ramList: RamList,
  options: MemoryBackendOptions,
): MemoryRegion {
  switch (backend.kind) {
    case 'anonymous':
      return anonymousBackend({ process, ramList }, options);
    case 'memfd':
      return memfdBackend({ process, ramList }, options);
    case 'file':
      return fileBackend({ process, ramList }, { ...options, path: backend.path });
    default: {
      const { kind } = backend satisfies never as { kind: unknown };
      throw new VmmError(`backend: got kind ${String(kind)}, want anonymous, memfd or file`);
    }
  }
}

/** kvm_init: KVM's limit, or what it recommends where it does not say. */
function checkVcpuCount({ vm }: KvmState, smp: number): void {
  const most = vm.checkExtension(KVM_CAP_MAX_VCPUS) || vm.checkExtension(KVM_CAP_NR_VCPUS) || 4;
  if (smp <= most) return;
  throw new VmmError(
    `smp: Number of SMP cpus requested (${smp}) exceeds the maximum cpus supported by KVM (${most})`,
  );
}

/** Lets the guest's MAP_GPA_RANGE reach the VMM, where KVM can. */
function enableMapGpaRange(kvm: KvmState): void {
  const bit = 1 << KVM_HC_MAP_GPA_RANGE;
  if ((kvm.vm.checkExtension(KVM_CAP_EXIT_HYPERCALL) & bit) === 0) return;
  try {
    kvm.vm.enableCap({ cap: KVM_CAP_EXIT_HYPERCALL, args: [BigInt(bit)] });
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    throw VmmError.because('KVM_ENABLE_CAP(KVM_CAP_EXIT_HYPERCALL) for MAP_GPA_RANGE failed', error);
  }
}

function splitIrqchip(kvm: KvmState): void {
  try {
    kvm.vm.enableCap({ cap: KVM_CAP_SPLIT_IRQCHIP, args: [BigInt(IOAPIC_PINS)] });
  } catch (error) {
    if (!(error instanceof LinuxError)) throw error;
    throw VmmError.because('irqchip split: KVM_ENABLE_CAP(KVM_CAP_SPLIT_IRQCHIP) failed', error);
  }
}
