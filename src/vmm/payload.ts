/**
 * What a machine starts, and how it gets into the guest's memory: an ELF image or a flat binary by the boot area's stub, an ELF image by an SNP launch, firmware at the end
 * of the first 4 GiB (QEMU's x86_load_linux, x86_bios_rom_init and sev-snp-guest have these places).
 */
import type { Hva } from '../base/address.ts';
import type { CpuidEntry, Process } from '../kernel/interface.ts';
import { anonymousBackend } from './backends/anonymous.ts';
import type { SevSnpGuest } from './confidential-guest/sev-snp-guest.ts';
import { IOAPIC_ADDRESS } from './devices/ioapic.ts';
import { VmmError } from './error.ts';
import { hasGigabytePages, signatureOf } from './guest-cpuid.ts';
import { buildBootArea, entryRegs, entrySregs } from './loaders/boot-area.ts';
import { loadElf64 } from './loaders/elf64.ts';
import {
  addSnpFirmware,
  type Firmware,
  firmwareStart,
  ISA_BIOS,
  isFirmwareName,
  loadFirmware,
} from './loaders/firmware.ts';
import { loadFlatBinary } from './loaders/flat-binary.ts';
import type { LoadedImage } from './loaders/image.ts';
import { longModeRegs } from './loaders/long-mode-entry.ts';
import { SNP_BOOT, snpEntrySregs, snpLaunchRanges } from './loaders/snp-boot.ts';
import type { VcpuStart } from './loaders/vcpu-start.ts';
import type { MachineOptions } from './machine.ts';
import type { AddressSpace } from './memory/address-space.ts';
import {
  aliasRegion,
  type MemoryRegion,
  memoryRegionIsRam,
  ramPointer,
  romRegion,
} from './memory/memory-region.ts';
import type { MemoryTopology } from './memory/memory-topology.ts';
import type { RamList } from './memory/ram-list.ts';

export type Payload =
  | { readonly kind: 'image'; readonly image: LoadedImage }
  | { readonly kind: 'firmware'; readonly firmware: Firmware };

/** What was put where it belongs. */
export interface Placed {
  readonly start: VcpuStart;
  /** Queues the pages that an SNP guest is launched with. `cpuid`: its CPUID page. */
  queue(snp: SevSnpGuest, cpuid: Uint8Array): void;
  /** Pages that are shared with an SNP guest from the start. */
  readonly shared: readonly number[];
}

/** The machine's memory, into which the payload goes. */
export interface Board {
  readonly process: Process;
  readonly topology: MemoryTopology;
  readonly systemMemory: AddressSpace;
  readonly ramList: RamList;
  readonly ram: MemoryRegion;
  /** Maps a region of RAM or ROM for as long as the machine lives. */
  addRam(at: number, region: MemoryRegion): MemoryRegion;
  /** `undo` is called when the machine is closed. */
  atClose(undo: () => void): void;
}

/** Throws VmmError. */
export function loadPayload(options: MachineOptions): Payload {
  const { image, imageName, memory, smp, type, irqchip, snp } = options;
  const hashes = snp?.guest?.['kernel-hashes'] === true;
  if (hashes !== (snp?.kernel !== undefined)) {
    const got = hashes ? 'on without a kernel' : 'a kernel, but off';
    throw new VmmError(`kernel-hashes: got ${got}, want both`);
  }
  if (!isFirmwareName(imageName)) {
    if (hashes) throw new VmmError(`kernel-hashes: got ${imageName}, want firmware (.fd)`);
    const load = imageName.endsWith('.bin') ? loadFlatBinary : loadElf64;
    return { kind: 'image', image: load(image, imageName, memory) };
  }
  const firmware = loadFirmware(image, imageName);
  if (memory > firmware.address)
    throw new VmmError(
      `memory: got ${memory} bytes, want at most ${firmware.address}, where firmware begins`,
    );
  if (irqchip === 'split') checkBelowIoapic(memory, memory);
  if (smp > 1 && type !== 'sev-snp' && irqchip !== 'split')
    throw new VmmError(
      `smp: got ${smp}, want irqchip split, by which firmware starts all vCPUs but the first`,
    );
  return { kind: 'firmware', firmware };
}

function checkBelowIoapic(memory: number, end: number): void {
  if (end > IOAPIC_ADDRESS)
    throw new VmmError(
      `memory: got ${memory} bytes, with irqchip split want less than what ends at the IOAPIC, 0xfec00000`,
    );
}

/** `cpuid`: what vCPUs are told. Throws VmmError. */
export function placePayload(
  board: Board,
  payload: Payload,
  options: MachineOptions,
  cpuid: readonly CpuidEntry[],
): Placed {
  if (payload.kind === 'firmware') return placeFirmware(board, payload.firmware, options, cpuid);
  if (options.type === 'sev-snp') return placeSnpImage(board, payload.image);
  const base = addBootArea(board, payload.image, options, cpuid);
  return {
    start: { regs: (index) => entryRegs(base, index), sregs: (_, current) => entrySregs(base, current) },
    queue: () => {},
    shared: [],
  };
}

function placeFirmware(
  board: Board,
  firmware: Firmware,
  { type, snp: options }: MachineOptions,
  cpuid: readonly CpuidEntry[],
): Placed {
  const region = addFirmwareRegion(board, firmware, type);
  return {
    start: firmwareStart(firmware, signatureOf(cpuid), type === 'sev-snp' ? 'protected' : 'plain'),
    queue: (snp, table) =>
      addSnpFirmware(firmware, {
        process: board.process,
        image: ramPointer(region, 0),
        ram: (gpa, size) => ramAt(board.systemMemory, gpa, size),
        cpuid: table,
        kernel: options?.kernel,
        add: (...pages) => snp.addPages(...pages),
      }),
    shared: [],
  };
}

function placeSnpImage({ process, ram }: Board, image: LoadedImage): Placed {
  return {
    start: {
      regs: (index) => longModeRegs(image.entry, index),
      sregs: (_, current) => snpEntrySregs(current),
    },
    queue: (snp, table) => {
      for (const { gpa, type, size, bytes } of snpLaunchRanges(image, table)) {
        const source = ramPointer(ram, gpa);
        if (bytes !== undefined) process.memory.write(source, bytes);
        snp.addPages(gpa, source, size, type);
      }
    },
    shared: [SNP_BOOT.GHCB, SNP_BOOT.HOST_PAGE],
  };
}

/** The image in shared memory, with the stub that copies it in. Returns the area's address. */
function addBootArea(
  board: Board,
  image: LoadedImage,
  { memory, bootStub, irqchip }: MachineOptions,
  cpuid: readonly CpuidEntry[],
): number {
  const largestPage = hasGigabytePages(cpuid) ? '1G' : '2M';
  const { base, bytes } = buildBootArea({ memory, image, stub: bootStub, largestPage });
  if (irqchip === 'split') checkBelowIoapic(memory, base + bytes.length);
  const region = board.addRam(
    base,
    anonymousBackend(board, { name: 'boot', size: bytes.length, sharing: 'private', guestMemfd: 'none' }),
  );
  board.process.memory.write(ramPointer(region, 0), bytes);
  return base;
}

/** x86_bios_rom_init */
function addFirmwareRegion(
  board: Board,
  { bytes, address }: Firmware,
  type: MachineOptions['type'],
): MemoryRegion {
  const size = bytes.length;
  const region =
    type === 'sev-snp'
      ? anonymousBackend(board, { name: 'pc.bios', size, sharing: 'private', guestMemfd: 'required' })
      : romRegion(board.ramList, 'pc.bios', size);
  board.process.memory.write(ramPointer(region, 0), bytes);
  board.addRam(address, region);
  if (type !== 'default') return region;
  const low = Math.min(size, ISA_BIOS.LARGEST);
  const alias = aliasRegion('isa-bios', region, size - low, low);
  const { root } = board.systemMemory;
  board.topology.addSubregionOverlap(root, ISA_BIOS.END - low, alias, 1);
  board.atClose(() => board.topology.delSubregion(root, alias));
  return region;
}

/** gpa2hva: undefined unless all of the range lies in one region of RAM. */
function ramAt(memory: AddressSpace, gpa: number, size: number): Hva | undefined {
  const section = memory.find(gpa, size);
  if (section === undefined || section.start !== gpa || section.size !== size) return undefined;
  return memoryRegionIsRam(section.region) ? ramPointer(section.region, section.offsetInRegion) : undefined;
}
