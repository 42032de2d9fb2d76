/** Options of `softcvm run --type sev-snp`: what the chip is, what firmware is asked for, and what the guest is given. */
import { CertificateTableError, decodeCertificateTable } from '../abi/certificate-table.ts';
import { SEV_ISSUE_CMD, sevUserVlekLoad } from '../abi/sev-device.ts';
import { decodeTcb } from '../abi/tcb-version.ts';
import type { Authority } from '../authority/authority.ts';
import { platformEntropy, seededEntropy } from '../base/entropy.ts';
import { textOf } from '../base/option-checks.ts';
import { Chip, type ChipGeneration, type Host, type Process, type SnpMachineOptions } from '../index.ts';
import { GUEST_DATA_BYTES } from '../vmm/loaders/snp-boot.ts';
import { openAuthority } from './authority.ts';
import { readInput } from './files.ts';
import { InputError, parseChoice, parseWord } from './size.ts';

/** Options as commander has them. */
export interface SnpCommandOptions {
  readonly chip?: string;
  readonly tcb?: string;
  readonly policy?: string;
  readonly hostData?: string;
  readonly idBlock?: string;
  readonly idAuth?: string;
  readonly authorKey?: boolean;
  readonly certs?: string;
  readonly certsBusy?: string;
  readonly signingKey?: string;
  readonly guestData?: string;
  /** With kernel-hashes, whose hashes firmware gets. */
  readonly guestKernel?: string;
  readonly initrd?: string;
  readonly append?: string;
  /** Directory of the authority that the chip belongs to. */
  readonly state?: string;
  /** The authority's as well as the run's. */
  readonly seed?: string;
}

const GENERATIONS = ['milan', 'genoa', 'turin'] as const satisfies readonly ChipGeneration[];
const OPTIONS = {
  chip: '--chip',
  tcb: '--tcb',
  policy: '--policy',
  hostData: '--host-data',
  idBlock: '--id-block',
  idAuth: '--id-auth',
  authorKey: '--author-key',
  certs: '--certs',
  certsBusy: '--certs-busy',
  signingKey: '--signing-key',
  guestData: '--guest-data',
  guestKernel: '--guest-kernel',
  initrd: '--initrd',
  append: '--append',
  state: '--state',
} as const satisfies Partial<Record<keyof SnpCommandOptions, string>>;

const HOST_DATA_BYTES = 32;
const ID_BLOCK_BYTES = 96;
const ID_AUTH_BYTES = 4096;
/** Where the host has the certificates. */
const CERTIFICATES = '/run/softcvm/certificates';

/** Throws InputError for an option of SNP guests that another VM was given. */
export function refuseSnpOptions(options: SnpCommandOptions, type: string): void {
  for (const [name, option] of Object.entries(OPTIONS))
    if (options[name as keyof SnpCommandOptions] !== undefined)
      throw new InputError(`${option}: got it with --type ${type}, want --type sev-snp`);
}

/** A machine's SNP side as the command line has it. */
export interface SnpSetup {
  readonly chip: Chip;
  readonly machine: SnpMachineOptions;
  /** Puts the files that the VM needs on the host. */
  prepare(host: Host): void;
}

/** Throws InputError. */
export async function snpSetup(options: SnpCommandOptions): Promise<SnpSetup> {
  const generation = parseChoice(options.chip ?? 'milan', OPTIONS.chip, GENERATIONS);
  const guestData = hexOption(options.guestData, OPTIONS.guestData, GUEST_DATA_BYTES);
  const hostData = hexOption(options.hostData, OPTIONS.hostData, HOST_DATA_BYTES);
  const policy = options.policy === undefined ? undefined : numberOption(options.policy, OPTIONS.policy);
  const idBlock = fileOption(options.idBlock, OPTIONS.idBlock, { bytes: ID_BLOCK_BYTES, rule: 'exactly' });
  const idAuth = fileOption(options.idAuth, OPTIONS.idAuth, { bytes: ID_AUTH_BYTES, rule: 'at most' });
  if ((idBlock === undefined) !== (idAuth === undefined))
    throw new InputError('--id-block, --id-auth: got one of them, want both or none');
  if (options.authorKey === true && idBlock === undefined)
    throw new InputError('--author-key: got it without --id-block and --id-auth, want all three');
  const kernel = kernelOption(options);
  const given = options.certs === undefined ? undefined : certificateTable(options.certs);
  const signingKey = parseWord(options.signingKey ?? 'VCEK', OPTIONS.signingKey, ['VCEK', 'VLEK']);
  const authority = openAuthority(options);
  const chip = chipOf(authority, generation, options.tcb);
  const vlek = signingKey === 'VLEK' ? await authority.loadedKey(chip) : undefined;
  const table = given ?? (await authority.certificateTable(chip, signingKey));
  return {
    chip,
    machine: {
      guest: {
        ...(policy === undefined ? {} : { policy }),
        ...(hostData === undefined ? {} : { 'host-data': base64(hostData) }),
        ...(idBlock === undefined ? {} : { 'id-block': base64(idBlock), 'id-auth': base64(idAuth!) }),
        ...(kernel === undefined ? {} : { 'kernel-hashes': true }),
        ...(options.authorKey === undefined ? {} : { 'author-key-enabled': options.authorKey }),
      },
      certificates: {
        path: CERTIFICATES,
        ...(options.certsBusy === undefined ? {} : { busy: putOff(options.certsBusy, options.seed) }),
      },
      ...(guestData === undefined ? {} : { guestData }),
      ...(kernel === undefined ? {} : { kernel }),
    },
    prepare({ process }) {
      if (vlek !== undefined) loadVlek(process, vlek.wrapped);
      const fd = process.open(CERTIFICATES);
      process.pwrite(fd, table, 0n);
      process.close(fd);
    },
  };
}

/** As a provider does when its machine starts (virtee/snphost `config vlek-load`). From then on firmware signs with it, unless a guest asks for the VCEK. */
function loadVlek(process: Process, blob: Uint8Array): void {
  const fd = process.openSev();
  const data = sevUserVlekLoad.encode({ length: sevUserVlekLoad.size, address: 1n });
  process.sevIssueCommand(fd, { cmd: SEV_ISSUE_CMD.SNP_VLEK_LOAD, data, blob });
  process.close(fd);
}

/** What guests see of the file, who check nothing of it until they use it. */
function certificateTable(path: string): Uint8Array {
  const table = readInput(path, OPTIONS.certs);
  try {
    decodeCertificateTable(table);
  } catch (error) {
    if (!(error instanceof CertificateTableError)) throw error;
    throw new InputError(`${OPTIONS.certs}: got ${path}: ${error.message}`);
  }
  return table;
}

/** Whether to put off each request for certificates: the first so many, or a share of all. */
function putOff(text: string, seed: string | undefined): () => boolean {
  const [, digits, percent] = /^(\d{1,9})(%?)$/.exec(text) ?? [];
  const number = Number(digits);
  if (digits === undefined || (percent === '%' && number > 100))
    throw new InputError(
      `${OPTIONS.certsBusy}: got ${textOf(text)}, want a number of requests, such as 3, or a share, such as 25%`,
    );
  if (percent === '') {
    let left = number;
    return () => left-- > 0;
  }
  const entropy = seed === undefined ? platformEntropy() : seededEntropy(Number(seed));
  return () => entropy.below(100) < number;
}

/** The authority's chip of that generation, with another TCB if the user wants one. */
function chipOf(authority: Authority, generation: ChipGeneration, tcb: string | undefined): Chip {
  const chip = authority.chip(generation);
  if (tcb === undefined) return chip;
  const version = numberOption(tcb, OPTIONS.tcb);
  const { fuses, signatures } = chip;
  const entropy = platformEntropy();
  const other = new Chip({
    generation,
    entropy,
    fuses,
    signatures,
    tcb: decodeTcb(generation, version),
  });
  if (other.currentTcb !== version)
    throw new InputError(
      `${OPTIONS.tcb}: got ${tcb}, want a TCB_VERSION of a ${generation}: its reserved bytes are zero`,
    );
  return other;
}

function kernelOption({
  guestKernel,
  initrd,
  append,
}: SnpCommandOptions): SnpMachineOptions['kernel'] | undefined {
  if (guestKernel === undefined) {
    if (initrd === undefined && append === undefined) return undefined;
    const option = initrd === undefined ? OPTIONS.append : OPTIONS.initrd;
    throw new InputError(`${option}: got it without ${OPTIONS.guestKernel}, want both`);
  }
  return {
    kernel: readInput(guestKernel, OPTIONS.guestKernel),
    ...(initrd === undefined ? {} : { initrd: readInput(initrd, OPTIONS.initrd) }),
    ...(append === undefined ? {} : { append }),
  };
}

const base64 = (bytes: Uint8Array): string => Buffer.from(bytes).toString('base64');

function hexOption(text: string | undefined, option: string, bytes: number): Uint8Array | undefined {
  if (text === undefined) return undefined;
  if (text.length !== 2 * bytes || !/^[0-9a-f]*$/i.test(text))
    throw new InputError(`${option}: got ${textOf(text)}, want ${bytes} bytes in hex`);
  return new Uint8Array(Buffer.from(text, 'hex'));
}

function numberOption(text: string, option: string): bigint {
  const value = /^(0x[0-9a-f]+|\d+)$/i.test(text) ? BigInt(text) : -1n;
  if (value < 0n || value >> 64n !== 0n)
    throw new InputError(`${option}: got ${textOf(text)}, want a number of 64 bits such as 0x30000`);
  return value;
}

/** A file of so many bytes, or the same in base64. */
function fileOption(
  path: string | undefined,
  option: string,
  want: { bytes: number; rule: 'exactly' | 'at most' },
): Uint8Array | undefined {
  if (path === undefined) return undefined;
  const file = readInput(path, option);
  const text = file.toString('latin1').trim();
  const isText = /^[A-Za-z0-9+/\s]+=*$/.test(text);
  const bytes = isText ? Buffer.from(text, 'base64') : file;
  const fits = want.rule === 'exactly' ? bytes.length === want.bytes : bytes.length <= want.bytes;
  if (!fits)
    throw new InputError(
      `${option}: got ${path} with ${bytes.length} bytes, want ${want.rule} ${want.bytes}, binary or base64`,
    );
  return new Uint8Array(bytes);
}
