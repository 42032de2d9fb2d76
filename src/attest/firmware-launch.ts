/**
 * What a host adds to an SNP guest that starts from a firmware image, in order: the image, the sections of its metadata, then the VMSA of each
 * vCPU (QEMU target/i386/sev.c; Amazon EC2 and Google Compute Engine as virtee/sev-snp-measure knows them).
 */
import {
  requireBytes,
  requireInteger,
  requireKind,
  requireKnownFields,
  requireOneOf,
  requireU64,
} from '../base/option-checks.ts';
import { EvidenceError } from './evidence-error.ts';
import { type KernelFiles, kernelHashesPage } from './kernel-hashes.ts';
import { type LaunchUpdate, VMSA_GPA } from './launch-digest.ts';
import { type Firmware, type FirmwareSection, requireFirmware, SECTION_TYPE } from './ovmf.ts';
import { BSP_EIP, resetVmsa, VMM_TYPES, type VmmType } from './vmsa.ts';

export interface FirmwareLaunch {
  readonly firmware: Firmware;
  readonly vcpus: number;
  /** CPUID Fn0000_0001 EAX. Only QEMU shows it. */
  readonly vcpuSignature: number;
  /** SEV_FEATURES; default 1: SNP alone. */
  readonly guestFeatures?: bigint;
  /** Default qemu. */
  readonly vmm?: VmmType;
  /** Kernel to be measured with the firmware. */
  readonly kernel?: KernelFiles;
}

/** The image's pages. RangeError: not what `parseFirmware` returns. */
export function imageUpdate(firmware: Firmware): LaunchUpdate {
  requireFirmware(firmware);
  const { bytes, gpa } = firmware;
  return { type: 'normal', gpa, size: bytes.length, bytes, label: 'firmware' };
}

const LAUNCH: Record<keyof FirmwareLaunch, true> = {
  ...{ firmware: true, vcpus: true, vcpuSignature: true },
  ...{ guestFeatures: true, vmm: true, kernel: true },
};
const KERNEL: Record<keyof KernelFiles, true> = { kernel: true, initrd: true, append: true };

/** Throws EvidenceError where the image cannot be started so; RangeError for what no launch can have. */
export async function firmwareUpdates(launch: FirmwareLaunch): Promise<LaunchUpdate[]> {
  const sections = await sectionUpdates(launch);
  return [imageUpdate(launch.firmware), ...sections, ...vmsaUpdates(launch)];
}

function requireLaunch(launch: FirmwareLaunch): void {
  requireKnownFields('launch', launch, LAUNCH);
  const { firmware, vcpus, vcpuSignature, guestFeatures, vmm, kernel } = launch;
  requireFirmware(firmware);
  requireInteger('vcpus', vcpus, 1, 4096);
  requireInteger('vcpuSignature', vcpuSignature, 0, 2 ** 32 - 1);
  if (guestFeatures !== undefined) requireU64('guestFeatures', guestFeatures);
  if (vmm !== undefined) requireOneOf('vmm', vmm, VMM_TYPES);
  if (kernel === undefined) return;
  requireKnownFields('kernel', kernel, KERNEL);
  requireBytes('kernel.kernel', kernel.kernel);
  if (kernel.initrd !== undefined) requireBytes('kernel.initrd', kernel.initrd);
  requireKind('kernel.append', kernel.append, (value) => typeof value === 'string', 'a string');
}

/** What follows the image. Throws as `firmwareUpdates`. */
export async function sectionUpdates(launch: FirmwareLaunch): Promise<LaunchUpdate[]> {
  requireLaunch(launch);
  const { firmware, vmm = 'qemu', kernel } = launch;
  checkOverlaps(firmware);
  const updates: LaunchUpdate[] = [];
  const cpuids: LaunchUpdate[] = [];
  for (const section of firmware.sections) {
    const { gpa, size } = section;
    switch (section.type) {
      case SECTION_TYPE.secMem:
        updates.push({ type: vmm === 'gce' ? 'unmeasured' : 'zero', gpa, size, label: 'SEC memory' });
        break;
      case SECTION_TYPE.secrets:
        updates.push({ type: 'secrets', gpa, size: vmm === 'qemu' ? size : 4096, label: 'secrets' });
        break;
      case SECTION_TYPE.cpuid:
        if (size !== 4096)
          throw new EvidenceError(`SEV metadata, CPUID section: got ${size} bytes, want 4096`);
        // Amazon adds it last.
        (vmm === 'ec2' ? cpuids : updates).push({ type: 'cpuid', gpa, size: 4096, label: 'CPUID' });
        break;
      case SECTION_TYPE.kernelHashes:
        updates.push(await kernelHashes(firmware, section, kernel));
        break;
      case SECTION_TYPE.svsmCaa:
        updates.push({ type: 'zero', gpa, size, label: 'SVSM calling area' });
        break;
      default:
        if (vmm !== 'qemu') {
          throw new EvidenceError(
            `SEV metadata, section at 0x${gpa.toString(16)}: got type ${section.type}, want a known one`,
          );
        }
        updates.push({ type: 'zero', gpa, size, label: `section of type ${section.type}` });
    }
  }
  if (kernel !== undefined && !firmware.sections.some(({ type }) => type === SECTION_TYPE.kernelHashes)) {
    throw new EvidenceError(
      '--kernel: got a kernel, want a firmware whose SEV metadata has a section for kernel hashes',
    );
  }
  return [...updates, ...cpuids];
}

/** A page that was launched cannot be launched again: RMPUPDATE finds it assigned. */
function checkOverlaps({ gpa, bytes, sections }: Firmware): void {
  const image = { index: -1, gpa, size: bytes.length };
  const ranges = [image, ...sections.map((section, index) => ({ ...section, index }))];
  ranges.sort((a, b) => a.gpa - b.gpa);
  for (const [at, next] of ranges.entries()) {
    const before = ranges[at - 1];
    if (before === undefined || before.gpa + before.size <= next.gpa) continue;
    const [first, second] = [before, next].sort((a, b) => a.index - b.index) as [typeof image, typeof image];
    const name = first.index < 0 ? 'the image' : `section ${first.index}`;
    throw new EvidenceError(
      `SEV metadata, section ${second.index}: got ${placeOf(second)}, which overlaps ${name}, ${placeOf(first)}, want each page once`,
    );
  }
}

const placeOf = ({ gpa, size }: { readonly gpa: number; readonly size: number }): string =>
  `0x${gpa.toString(16)} + 0x${size.toString(16)}`;

async function kernelHashes(
  { hashTableGpa }: Firmware,
  { gpa, size }: FirmwareSection,
  kernel: KernelFiles | undefined,
): Promise<LaunchUpdate> {
  const label = 'kernel hashes';
  if (kernel === undefined) return { type: 'zero', gpa, size, label };
  if (hashTableGpa === undefined) {
    throw new EvidenceError(
      'SEV hash table entry: got none in the firmware, want the place of the kernel hashes',
    );
  }
  if (size !== 4096) throw new EvidenceError(`SEV metadata, kernel hashes: got ${size} bytes, want one page`);
  return { type: 'normal', gpa, size, bytes: await kernelHashesPage(kernel, hashTableGpa & 0xfff), label };
}

function vmsaUpdates(launch: FirmwareLaunch): LaunchUpdate[] {
  const { firmware, vcpus, vcpuSignature, guestFeatures = 1n, vmm = 'qemu' } = launch;
  const apEip = firmware.apEip;
  if (vcpus > 1 && (apEip === undefined || apEip === 0)) {
    throw new EvidenceError(
      `SEV-ES reset block: got ${apEip ?? 'none'} in the firmware, want where ${vcpus - 1} more vCPUs start`,
    );
  }
  return Array.from({ length: vcpus }, (_, index) => ({
    type: 'vmsa',
    gpa: VMSA_GPA,
    size: 4096,
    bytes: resetVmsa({ vmm, eip: index === 0 ? BSP_EIP : apEip!, guestFeatures, vcpuSignature }),
    label: `VMSA of vCPU ${index}`,
  }));
}
