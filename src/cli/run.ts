/** `softcvm run`: one VM on one host, from the entry of its image to the end of its run. */

import { VCPU_TYPES } from '../attest/vmsa.ts';
import { signatureOrder } from '../hardware/chip/personality.ts';
import {
  ACCELERATORS,
  createHost,
  EARLY_FORMS,
  GiB,
  type Host,
  type HostOptions,
  IRQCHIPS,
  KERNELS,
  type LaunchReport,
  launchMeasurement,
  MiB,
  type RunReport,
  Trace,
  VM_TYPES,
  type Vm,
  VmmError,
  type VmOptions,
  WrongMeasurement,
} from '../index.ts';
import { isParavirtualKvm, PARAVIRTUAL_KVM } from '../linux/paravirtual-kvm.ts';
import { readGuestImage } from './files.ts';
import { InputError, parseChoice, parseInteger, parseNumber, parseSize } from './size.ts';
import { refuseSnpOptions, type SnpCommandOptions, snpSetup } from './snp-options.ts';
import { TraceFile } from './trace-file.ts';

/** Options as commander has them. */
export interface RunCommandOptions extends SnpCommandOptions {
  readonly type: string;
  readonly memory: string;
  readonly smp: string;
  readonly vcpuType?: string;
  readonly irqchip?: string;
  readonly accel?: string;
  /** The newest when absent. */
  readonly kernel?: string;
  readonly early?: string;
  readonly seed?: string;
  readonly gmemHuge?: boolean;
  readonly hostMemory?: string;
  readonly trace?: string;
  readonly json?: boolean;
  readonly timeout?: string;
}

const PAGE = 4096;
/** Host memory cannot be larger (Node 20's limit for a shared WebAssembly.Memory). */
const MAX_HOST = 4 * GiB;
const MAX_VCPUS = 1024;
/** The real KVM may emulate without an end; nobody need wait for it. */
const REAL_KERNEL_TIMEOUT = '60';

/** Room for both sides of every page, tables and the VMM. */
const hostMemoryFor = (memory: number): number => Math.min(MAX_HOST, Math.max(GiB, 2 * memory + 64 * MiB));

/**
 * Returns the exit status; `atEnd` gets it as soon as all output is written, before anything is torn down. Throws InputError for what
 * the user can mend.
 */
export async function run(
  image: string,
  options: RunCommandOptions,
  atEnd: (status: number) => void = () => {},
): Promise<number> {
  const type = parseChoice(options.type, '--type', VM_TYPES);
  if (type !== 'sev-snp') refuseSnpOptions(options, type);
  const memory = parseSize(options.memory, '--memory');
  if (memory === 0 || memory % PAGE !== 0) {
    throw new InputError(`--memory: got ${options.memory}, want a positive multiple of 4K`);
  }
  const smp = parseInteger(options.smp, '--smp', 1, MAX_VCPUS);
  const vcpuSignature =
    options.vcpuType === undefined
      ? undefined
      : VCPU_TYPES[parseChoice(options.vcpuType, '--vcpu-type', Object.keys(VCPU_TYPES))]!;
  const irqchip = parseChoice(options.irqchip ?? IRQCHIPS[0], '--irqchip', IRQCHIPS);
  const kernel = parseChoice(options.kernel ?? KERNELS[0], '--kernel', KERNELS);
  const early = (options.early?.split(',') ?? []).map((form) =>
    parseChoice(form.trim(), '--early', EARLY_FORMS),
  );
  const seed = options.seed === undefined ? undefined : parseInteger(options.seed, '--seed', 0, 2 ** 32 - 1);
  const accel = parseChoice(options.accel ?? ACCELERATORS[0], '--accel', ACCELERATORS);
  if (accel === 'kvm') refuseOptionsOfOurKernel(options);
  if (options.gmemHuge === true && type === 'default')
    throw new InputError('--gmem-huge: got it with --type default, whose memory is in no guest_memfd');
  if (accel === 'kvm' && type === 'sev-snp')
    throw new InputError('--accel: got kvm with --type sev-snp, want softcvm: our chips are our own');
  const timeout = options.timeout ?? (accel === 'kvm' ? REAL_KERNEL_TIMEOUT : undefined);
  const timeoutMs = timeout === undefined ? undefined : parseNumber(timeout, '--timeout', 0.001, 1e6) * 1000;
  const hostMemory =
    options.hostMemory === undefined ? hostMemoryFor(memory) : parseSize(options.hostMemory, '--host-memory');
  if (hostMemory < MiB || hostMemory > MAX_HOST || hostMemory % PAGE !== 0) {
    throw new InputError(`--host-memory: got ${options.hostMemory}, want 1M to 4G in whole pages`);
  }
  const loaded = await readGuestImage(image);

  const certificates = options.certs === undefined ? options.certsBusy && '--certs-busy' : '--certs';
  if (certificates !== undefined && kernel === '6.12' && !early.includes('certs'))
    throw new InputError(
      `${certificates}: got it with --kernel 6.12, which never asks for them; want --early certs`,
    );
  const snp = type === 'sev-snp' ? await snpSetup(options) : undefined;
  if (snp !== undefined && signatureOrder(vcpuSignature ?? 0) > signatureOrder(snp.chip.signature))
    throw new InputError(
      `--vcpu-type: got ${options.vcpuType}, want one that is not newer than the chip, a ${snp.chip.generation}`,
    );
  const trace = new Trace();
  const file = options.trace === undefined ? undefined : new TraceFile(options.trace, trace);
  try {
    const ours: HostOptions = {
      memory: hostMemory,
      kernel,
      early,
      ...(seed === undefined ? {} : { seed }),
      ...(options.gmemHuge === true ? { gmemFolio: '2M' } : {}),
      ...(snp === undefined ? {} : { chip: snp.chip }),
    };
    using host = createHost({ accel, trace, ...(accel === 'kvm' ? {} : ours) });
    snp?.prepare(host);
    const json = options.json === true;
    using vm = await createVm(host, options, {
      type,
      memory,
      smp,
      ...(vcpuSignature === undefined ? {} : { vcpuSignature }),
      irqchip,
      ...loaded,
      ...(snp === undefined ? {} : { snp: snp.machine }),
      ...(json ? {} : { onConsole: (bytes: Uint8Array) => process.stdout.write(bytes) }),
    });
    const report = await vm.run(timeoutMs === undefined ? {} : { timeoutMs });
    if (json) console.log(JSON.stringify(reportAsJson(report)));
    else if (report.exit.reason !== 'debug-exit' && report.exit.reason !== 'hlt') {
      console.error(`softcvm: ${describeEnd(report, accel)}${hintAtEnd(report, image, type)}`);
    }
    file?.close();
    atEnd(report.exit.code);
    return report.exit.code;
  } finally {
    file?.close();
  }
}

/** What the real kernel cannot be told. */
function refuseOptionsOfOurKernel(options: RunCommandOptions): void {
  const given = {
    '--kernel': options.kernel !== undefined,
    '--early': options.early !== undefined,
    '--seed': options.seed !== undefined,
    '--gmem-huge': options.gmemHuge === true,
    '--host-memory': options.hostMemory !== undefined,
  };
  const wrong = Object.entries(given).find(([, isGiven]) => isGiven)?.[0];
  if (wrong !== undefined)
    throw new InputError(`--accel kvm: got ${wrong}, which the real kernel does not have`);
}

/** An image, a size or a property that cannot be is the user's to mend; another system call that failed is not. */
async function createVm(host: Host, options: RunCommandOptions, vm: VmOptions): Promise<Vm> {
  try {
    return host.createVm(vm);
  } catch (error) {
    if (!(error instanceof VmmError)) throw error;
    if (error instanceof WrongMeasurement) {
      const launched = hex(await launchMeasurement(error.contents));
      throw new InputError(
        `--id-block: got ${options.idBlock} for a launch digest ${hex(error.wanted)}, want it for ${launched} (firmware: BAD_MEASUREMENT)`,
      );
    }
    if (error.property === 'policy')
      throw new InputError(`--policy: got ${options.policy}: ${error.message}`);
    if (error.property === 'type')
      throw new InputError(
        `--type: got ${options.type}: ${error.message}; want default, which every KVM has`,
      );
    if (error.errno === undefined) throw new InputError(error.message);
    throw error;
  }
}

function describeEnd({ exit }: RunReport, accel: string): string {
  const message = exit.message ?? exit.reason;
  if (exit.reason !== 'timeout') return message;
  const why = accel === 'kvm' && isParavirtualKvm() ? `; ${PARAVIRTUAL_KVM}` : '';
  return `timeout: ${message}${why}`;
}

/** A guest for another VM goes wrong at its first access to memory that it has not validated. */
function hintAtEnd({ exit, exits }: RunReport, image: string, type: string): string {
  const { shutdown, ...others } = exits;
  const silent = Object.values(others).every((count) => count === 0);
  if (type !== 'sev-snp' || exit.reason !== 'shutdown' || !silent) return '';
  return `; it never spoke to its host: is ${image} built as an SNP guest?`;
}

/** The object that --json prints. */
export function reportAsJson(report: RunReport): object {
  return {
    exit: report.exit,
    console: report.console,
    instructions: report.instructions,
    exits: report.exits,
    memory: {
      private_pages: report.memory.privatePages,
      private_frames: report.memory.privateFrames,
      shared_frames: report.memory.sharedFrames,
      huge_frames: report.memory.hugeFrames,
      conversions: report.memory.conversions,
    },
    wall_ms: Math.round(report.wallMs * 1000) / 1000,
    ...(report.launch === undefined ? {} : { launch: launchAsJson(report.launch) }),
    ...(report.report === undefined ? {} : { report: hex(report.report) }),
    ...(report.certificates === undefined ? {} : { certificates: report.certificates }),
  };
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const launchAsJson = ({ measurement, pages, policy }: LaunchReport): object => ({
  measurement: hex(measurement),
  pages,
  policy: `0x${policy.toString(16)}`,
});
