/**
 * A firmware image: it lies at the end of the first 4 GiB, and vCPUs start as after a reset (QEMU hw/i386/x86-common.c: x86_bios_rom_init,
 * x86_isa_bios_init; hw/i386/pc_sysfw.c: x86_firmware_configure; target/i386/cpu.c: x86_cpu_reset_hold; target/i386/sev.c: snp_populate_metadata_pages).
 *
 * A plain guest has it as ROM, with its last 128 KiB below 1 MiB as well. Guests with private RAM have it at its place alone: a software-protected one as shared ROM,
 * since no host call fills private memory for it; an SNP guest as RAM with a guest_memfd, all of which is launched, then what its metadata lists, in that order.
 */
import { SNP_PAGE_TYPE } from '../../abi/sev-firmware.ts';
import { GiB, type Hva, KiB, MiB } from '../../base/address.ts';
import type { Process, Segment, Sregs } from '../../kernel/interface.ts';
import { hex, VmmError } from '../error.ts';
import { imageError } from './image.ts';
import { type KernelFiles, type KernelHashes, kernelHashes, kernelHashesSection } from './kernel-hashes.ts';
import { type OvmfMetadata, readOvmfMetadata, SEV_SECTION, type SevSection } from './ovmf-metadata.ts';
import type { VcpuStart } from './vcpu-start.ts';

/** Firmware ends here. */
const TOP = 4 * GiB;
const GRANULE = 64 * KiB;
/** What lies above IOAPIC and local APIC. */
const LARGEST = 16 * MiB;
/** x86_isa_bios_init */
export const ISA_BIOS = { END: MiB, LARGEST: 128 * KiB } as const;
const RESET_VECTOR = 0xffff_fff0;
/** What a segment of real mode reaches. */
const SEGMENT = 0x1_0000;

export interface Firmware {
  readonly name: string;
  readonly bytes: Uint8Array;
  /** Guest-physical address. */
  readonly address: number;
  readonly metadata: OvmfMetadata;
}

/** An image of this name is firmware. */
export const isFirmwareName = (imageName: string): boolean => imageName.endsWith('.fd');

/** Throws VmmError. */
export function loadFirmware(bytes: Uint8Array, name: string): Firmware {
  if (bytes.length === 0 || bytes.length % GRANULE !== 0 || bytes.length > LARGEST)
    throw imageError(name, 'firmware', `${bytes.length} bytes`, 'a multiple of 64 KiB, at most 16 MiB');
  return { name, bytes, address: TOP - bytes.length, metadata: readOvmfMetadata(bytes, name) };
}

/**
 * x86_cpu_reset_hold: each vCPU as after a reset, with the CPU's signature in EDX. Where the guest's state is `protected`, all but the first start where the image says
 * (sev_es_set_reset_vector). Throws VmmError.
 */
export function firmwareStart(
  firmware: Firmware,
  signature: number,
  state: 'plain' | 'protected',
): VcpuStart {
  const others = state === 'protected' ? resetAddress(firmware) : RESET_VECTOR;
  const from = (index: number): number => (index === 0 ? RESET_VECTOR : others);
  return {
    regs: (index) => ({
      ...{ rax: 0n, rbx: 0n, rcx: 0n, rdx: BigInt(signature), rsi: 0n, rdi: 0n, rsp: 0n, rbp: 0n },
      ...{ r8: 0n, r9: 0n, r10: 0n, r11: 0n, r12: 0n, r13: 0n, r14: 0n, r15: 0n },
      rip: BigInt(from(index) % SEGMENT),
      rflags: 2n,
    }),
    sregs: (index, current) => resetSregs(current, from(index) - (from(index) % SEGMENT)),
  };
}

/** sev_es_find_reset_vector. Throws VmmError. */
function resetAddress({ name, metadata }: Firmware): number {
  const address = metadata.resetAddress;
  if (address === undefined)
    throw new VmmError(`${name}: SEV information block/Firmware GUID Table block not found in pflash rom`);
  if (address === 0) throw new VmmError(`${name}: SEV-ES reset address is zero`);
  return address;
}

function resetSregs(current: Sregs, codeBase: number): Sregs {
  const real = { base: 0n, limit: 0xffff, selector: 0, present: 1, dpl: 0, db: 0, l: 0, g: 0, avl: 0 };
  const data: Segment = { ...real, type: 0x3, s: 1, unusable: 0 };
  const system: Segment = { ...real, type: 0x2, s: 0, unusable: 0 };
  return {
    ...current,
    cs: { ...data, type: 0xb, selector: 0xf000, base: BigInt(codeBase) },
    ds: data,
    es: data,
    fs: data,
    gs: data,
    ss: data,
    tr: { ...system, type: 0xb },
    ldt: system,
    gdt: { base: 0n, limit: 0xffff },
    idt: { base: 0n, limit: 0xffff },
    cr0: 0x6000_0010n,
    cr2: 0n,
    cr3: 0n,
    cr4: 0n,
    efer: 0n,
  };
}

export interface SnpFirmwareLaunch {
  readonly process: Process;
  /** The VMM's memory behind the firmware region. */
  readonly image: Hva;
  /** The VMM's memory behind a range of the guest's; undefined where that is no RAM of one region. */
  readonly ram: (gpa: number, size: number) => Hva | undefined;
  /** The launch's CPUID page. */
  readonly cpuid: Uint8Array;
  /** With kernel-hashes. */
  readonly kernel: KernelFiles | undefined;
  /** Queues pages, in order. */
  readonly add: (gpa: number, address: Hva, size: number, type: number) => void;
}

/** x86_firmware_configure and snp_populate_metadata_pages: queues what is launched. Throws VmmError. */
export function addSnpFirmware(firmware: Firmware, launch: SnpFirmwareLaunch): void {
  const { name, bytes, metadata } = firmware;
  const { process, image, ram, kernel, add } = launch;
  const hashes = kernel === undefined ? undefined : kernelHashes(kernel, metadata.hashTable);
  const { sections } = metadata;
  if (sections === undefined) throw new VmmError(`${name}: Failed to locate SEV metadata header`);
  checkOverlaps(firmware, sections);
  if (hashes !== undefined && !sections.some(({ type }) => type === SEV_SECTION.KERNEL_HASHES))
    throw imageError(name, 'SEV metadata', 'no section for kernel hashes', 'one with kernel-hashes on');
  add(firmware.address, image, bytes.length, SNP_PAGE_TYPE.NORMAL);
  for (const section of sections) {
    const { gpa, size } = section;
    const address = ram(gpa, size);
    if (address === undefined)
      throw new VmmError(`${name}: SEV metadata: Failed to get HVA for GPA ${hex(gpa)} sz ${hex(size)}`);
    const { type, content } = launched(firmware, section, launch.cpuid, hashes);
    if (content !== undefined) process.memory.write(address, content);
    add(gpa, address, size, type);
  }
}

/** QEMU leaves it to KVM, which refuses to launch a page twice, with EIO and without a name. */
function checkOverlaps({ name, address, bytes }: Firmware, sections: readonly SevSection[]): void {
  const image = { index: -1, gpa: address, size: bytes.length };
  const ranges = [image, ...sections.map(({ gpa, size }, index) => ({ index, gpa, size }))];
  ranges.sort((a, b) => a.gpa - b.gpa);
  for (const [at, next] of ranges.entries()) {
    const before = ranges[at - 1];
    if (before === undefined || before.gpa + before.size <= next.gpa) continue;
    const [first, second] = [before, next].sort((a, b) => a.index - b.index) as [typeof image, typeof image];
    const other = first.index < 0 ? 'the image' : `section ${first.index}`;
    throw imageError(
      name,
      `SEV metadata, section ${second.index}`,
      `${placeOf(second)}, which overlaps ${other}, ${placeOf(first)}`,
      'each page once',
    );
  }
}

const placeOf = ({ gpa, size }: { readonly gpa: number; readonly size: number }): string =>
  `${hex(gpa)} + ${hex(size)}`;

/** snp_metadata_desc_to_page_type: sections of types that are not known are launched as zeros. */
function launched(
  { name }: Firmware,
  { type, size }: SevSection,
  cpuid: Uint8Array,
  hashes: KernelHashes | undefined,
): { type: number; content?: Uint8Array } {
  switch (type) {
    case SEV_SECTION.SECRETS:
      return { type: SNP_PAGE_TYPE.SECRETS };
    case SEV_SECTION.CPUID:
      if (size !== cpuid.length)
        throw imageError(name, 'SEV metadata, CPUID section', `${size} bytes`, `${cpuid.length}`);
      return { type: SNP_PAGE_TYPE.CPUID, content: cpuid };
    case SEV_SECTION.KERNEL_HASHES:
      return hashes === undefined
        ? { type: SNP_PAGE_TYPE.ZERO }
        : { type: SNP_PAGE_TYPE.NORMAL, content: kernelHashesSection(hashes, size) };
    default:
      return { type: SNP_PAGE_TYPE.ZERO };
  }
}
