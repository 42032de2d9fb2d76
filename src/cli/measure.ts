/**
 * `softcvm measure`: the launch digest that a report of an SNP guest must show. Options and defaults are those of sev-snp-measure; `--explain` and
 * `--diff` are ours.
 */
import { createHash } from 'node:crypto';
import {
  EvidenceError,
  type FirmwareLaunch,
  firmwareUpdates,
  imageUpdate,
  imageUpdates,
  isElfImage,
  isFirmware,
  type LaunchStep,
  type LaunchUpdate,
  launchDifference,
  launchDigest,
  parseFirmware,
  VCPU_TYPES,
  VMM_TYPES,
  type VmmType,
  vcpuSignature,
} from '../attest/index.ts';
import { textOf } from '../base/option-checks.ts';
import { readGuestImage, readInput } from './files.ts';
import { InputError, parseChoice, parseInteger, parseWord } from './size.ts';

/** Options as commander has them. */
export interface MeasureCommandOptions {
  readonly mode: string;
  readonly ovmf?: string;
  readonly vcpus?: string;
  readonly vcpuType?: string;
  readonly vcpuSig?: string;
  readonly vcpuFamily?: string;
  readonly vcpuModel?: string;
  readonly vcpuStepping?: string;
  readonly guestFeatures?: string;
  readonly vmmType?: string;
  readonly kernel?: string;
  readonly initrd?: string;
  readonly append?: string;
  readonly snpOvmfHash?: string;
  readonly outputFormat?: string;
  readonly explain?: boolean;
  readonly diff?: string;
  readonly json?: boolean;
}

const MODES = ['snp', 'snp:ovmf-hash', 'sev', 'seves', 'snp:svsm'] as const;
const MAX_VCPUS = 4096;
/** What the launch of an ELF image does not depend on. */
const FIRMWARE_OPTIONS = {
  vcpuType: '--vcpu-type',
  vcpuSig: '--vcpu-sig',
  vcpuFamily: '--vcpu-family',
  vcpuModel: '--vcpu-model',
  vcpuStepping: '--vcpu-stepping',
  vmmType: '--vmm-type',
  kernel: '--kernel',
  initrd: '--initrd',
  append: '--append',
  snpOvmfHash: '--snp-ovmf-hash',
} as const satisfies Partial<Record<keyof MeasureCommandOptions, string>>;
/** What a digest of the image alone does not depend on. */
const LAUNCH_OPTIONS = {
  vcpus: '--vcpus',
  guestFeatures: '--guest-features',
  ...FIRMWARE_OPTIONS,
} as const satisfies Partial<Record<keyof MeasureCommandOptions, string>>;
const DIFFERENT = 1;

const sha384 = (bytes: Uint8Array): Uint8Array => createHash('sha384').update(bytes).digest();

/** Returns the exit status: 1 if `--diff` finds a difference. Throws InputError for what the user can mend. */
export async function measure(image: string | undefined, options: MeasureCommandOptions): Promise<number> {
  try {
    return await measureImage(image, options);
  } catch (error) {
    if (error instanceof EvidenceError || error instanceof RangeError) throw new InputError(error.message);
    throw error;
  }
}

async function measureImage(image: string | undefined, options: MeasureCommandOptions): Promise<number> {
  const mode = parseChoice(options.mode, '--mode', MODES);
  if (mode !== 'snp' && mode !== 'snp:ovmf-hash')
    throw new InputError(`--mode: got ${mode}, which is not implemented; want snp or snp:ovmf-hash`);
  refuseContradictions(mode, options);
  if ((image === undefined) === (options.ovmf === undefined)) {
    throw new InputError('measure: want one image, as --ovmf PATH or by itself');
  }
  const path = image ?? options.ovmf!;
  const base64 =
    parseChoice(options.outputFormat ?? 'hex', '--output-format', ['hex', 'base64']) === 'base64';
  const asPeer = image === undefined;
  const updates = await launchOf({ path, option: asPeer ? '--ovmf' : 'image' }, mode, asPeer, options);
  if (options.diff !== undefined) {
    const other = { path: options.diff, option: '--diff' };
    return showDifference(updates, await launchOf(other, mode, asPeer, options), options);
  }
  const steps: LaunchStep[] = [];
  const from = options.snpOvmfHash === undefined ? undefined : digestOf(options.snpOvmfHash);
  const digest = await launchDigest(
    updates,
    { sha384, ...(from === undefined ? {} : { from }) },
    options.explain ? (step) => steps.push(step) : undefined,
  );
  const measurement = Buffer.from(digest).toString(base64 ? 'base64' : 'hex');
  if (options.json) {
    console.log(
      JSON.stringify({ measurement, ...(options.explain ? { pages: steps.map(stepAsJson) } : {}) }),
    );
  } else {
    for (const { type, gpa, label, content, digest } of steps) {
      console.log(`${hex(gpa).padStart(14)}  ${type.padEnd(10)}  ${content}  ${digest}  ${label}`);
    }
    console.log(measurement);
  }
  return 0;
}

/** Options of which one would count for nothing. */
function refuseContradictions(mode: 'snp' | 'snp:ovmf-hash', options: MeasureCommandOptions): void {
  if (mode === 'snp:ovmf-hash') {
    const given = firstGiven(options, LAUNCH_OPTIONS);
    if (given !== undefined)
      throw new InputError(`${given}: got it with --mode ${mode}, which is the image alone`);
  }
  const { vcpuType, vcpuSig, vcpuFamily, vcpuModel, vcpuStepping } = options;
  const signatures = Object.entries({
    '--vcpu-type': vcpuType,
    '--vcpu-sig': vcpuSig,
    '--vcpu-family': vcpuFamily,
  });
  const [one, other] = signatures.filter(([, given]) => given !== undefined).map(([option]) => option);
  if (other !== undefined) throw new InputError(`${one}: got it with ${other}, want one of them`);
  if (vcpuFamily === undefined) {
    const part = vcpuModel === undefined ? '--vcpu-stepping' : '--vcpu-model';
    if ((vcpuModel ?? vcpuStepping) !== undefined)
      throw new InputError(`${part}: got it without --vcpu-family, want both`);
  }
  if (options.diff === undefined) return;
  if (options.explain === true) throw new InputError('--explain: got it with --diff, want one of them');
  if (options.outputFormat !== undefined)
    throw new InputError('--output-format: got it with --diff, which prints no digest');
}

/** The first of `names` that the user gave. */
function firstGiven(
  options: MeasureCommandOptions,
  names: Partial<Record<keyof MeasureCommandOptions, string>>,
): string | undefined {
  return Object.entries(names).find(
    ([name]) => options[name as keyof MeasureCommandOptions] !== undefined,
  )?.[1];
}

const hex = (value: number): string => `0x${value.toString(16)}`;
const stepAsJson = ({ gpa, type, content, digest, label }: LaunchStep): object => ({
  gpa: hex(gpa),
  type,
  content,
  digest,
  label,
});

/** What the host adds to the guest, in order. */
async function launchOf(
  { path, option: given }: { readonly path: string; readonly option: string },
  mode: 'snp' | 'snp:ovmf-hash',
  asPeer: boolean,
  options: MeasureCommandOptions,
): Promise<LaunchUpdate[]> {
  const bytes = asPeer ? readInput(path, given) : (await readGuestImage(path, given)).image;
  const format = asPeer || isFirmware(bytes) ? 'firmware' : imageFormat(path, bytes, given);
  if (format !== 'firmware') {
    const what = format === 'ELF' ? 'an ELF image' : 'a flat binary';
    if (mode !== 'snp') throw new InputError(`--mode: got ${mode} for ${what}, want a firmware image`);
    const other = firstGiven(options, FIRMWARE_OPTIONS);
    if (other !== undefined) throw new InputError(`${other}: got it for ${what}, want a firmware image`);
    return imageUpdates({
      image: bytes,
      format,
      vcpus: vcpusOf(options, asPeer),
      guestFeatures: featuresOf(options.guestFeatures),
    });
  }
  const firmware = parseFirmware(bytes, `${given} ${path}`);
  if (mode === 'snp:ovmf-hash') return [imageUpdate(firmware)];
  const vmm = parseWord(options.vmmType ?? 'qemu', '--vmm-type', VMM_TYPES);
  const launch: FirmwareLaunch = {
    firmware,
    vcpus: vcpusOf(options, asPeer),
    vmm,
    vcpuSignature: signatureOf(options, vmm, asPeer),
    guestFeatures: featuresOf(options.guestFeatures),
    ...kernelOf(options),
  };
  const updates = await firmwareUpdates(launch);
  // With a digest of the image given, the file's content does not count.
  return options.snpOvmfHash === undefined ? updates : updates.slice(1);
}

/** As `softcvm run` takes it: `.bin` is a flat binary, whatever it holds. */
function imageFormat(path: string, bytes: Uint8Array, option: string): 'ELF' | 'flat' {
  if (path.endsWith('.bin')) return 'flat';
  if (isElfImage(bytes)) return 'ELF';
  throw new InputError(
    `${option}: got ${path}, want an ELF file, a flat binary (.bin), or firmware with a GUIDed table as OVMF has`,
  );
}

function vcpusOf({ vcpus }: MeasureCommandOptions, asPeer: boolean): number {
  if (vcpus === undefined && asPeer) throw new InputError('--vcpus: got nothing, want the number of vCPUs');
  return parseInteger(vcpus ?? '1', '--vcpus', 1, MAX_VCPUS);
}

function signatureOf(options: MeasureCommandOptions, vmm: VmmType, asPeer: boolean): number {
  const { vcpuFamily, vcpuModel, vcpuStepping, vcpuSig, vcpuType } = options;
  if (vcpuFamily !== undefined) {
    return vcpuSignature(
      parseInteger(vcpuFamily, '--vcpu-family', 0, 0x10e),
      parseInteger(vcpuModel ?? '0', '--vcpu-model', 0, 255),
      parseInteger(vcpuStepping ?? '0', '--vcpu-stepping', 0, 15),
    );
  }
  if (vcpuSig !== undefined) return Number(wholeNumber(vcpuSig, '--vcpu-sig', 32));
  if (vcpuType !== undefined)
    return VCPU_TYPES[parseChoice(vcpuType, '--vcpu-type', Object.keys(VCPU_TYPES))]!;
  if (!asPeer) return VCPU_TYPES['EPYC-Milan']!;
  if (vmm === 'qemu') {
    throw new InputError('--vcpu-type: got nothing, want it, --vcpu-sig or --vcpu-family');
  }
  return 0;
}

/** SNP alone, unless the user says more. */
const featuresOf = (text = '0x1'): bigint => wholeNumber(text, '--guest-features', 64);

/** A number as Python's int(text, 0) takes it. */
function wholeNumber(text: string, option: string, bits: number): bigint {
  const value = /^(0x[0-9a-f]+|0o[0-7]+|0b[01]+|\d+)$/i.test(text) ? BigInt(text) : -1n;
  if (value < 0n || value >> BigInt(bits) !== 0n) {
    throw new InputError(`${option}: got ${textOf(text)}, want a number of at most ${bits} bits`);
  }
  return value;
}

function kernelOf({ kernel, initrd, append }: MeasureCommandOptions): Pick<FirmwareLaunch, 'kernel'> {
  if (kernel === undefined) {
    const given = initrd === undefined ? (append === undefined ? undefined : '--append') : '--initrd';
    if (given !== undefined) throw new InputError(`${given}: got it without --kernel, want both`);
    return {};
  }
  return {
    kernel: {
      kernel: readInput(kernel, '--kernel'),
      ...(initrd === undefined ? {} : { initrd: readInput(initrd, '--initrd') }),
      ...(append === undefined ? {} : { append }),
    },
  };
}

function digestOf(text: string): Uint8Array {
  if (!/^[0-9a-f]{96}$/i.test(text))
    throw new InputError(`--snp-ovmf-hash: got ${textOf(text)}, want 96 hex digits`);
  return Buffer.from(text, 'hex');
}

function showDifference(
  first: LaunchUpdate[],
  second: LaunchUpdate[],
  options: MeasureCommandOptions,
): number {
  const difference = launchDifference(first, second);
  if (options.json) console.log(JSON.stringify({ difference: difference ?? null }));
  else if (difference === undefined) console.log('no difference');
  else {
    const { page, what, got, want } = difference;
    const at = difference.first ?? difference.second!;
    console.log(
      `page ${page}, ${at.label}, ${at.type} at ${hex(at.gpa)}: ${what}: ${got} here, ${want} there`,
    );
  }
  return difference === undefined ? 0 : DIFFERENT;
}
