/**
 * `softcvm certs`: what an authority has issued, as files. Says the root's fingerprint on stderr, since somebody has to compare it before trusting
 * it.
 */
import type { Product } from '../abi/amd-certificate.ts';
import { generationOf, hwidBytes, PRODUCTS } from '../abi/amd-certificate.ts';
import { writePem } from '../abi/pem.ts';
import { hasReservedTcbBytes } from '../abi/tcb-version.ts';
import type { Authority } from '../authority/authority.ts';
import { textOf } from '../base/option-checks.ts';
import type { Chip } from '../hardware/chip.ts';
import { type AuthorityOptions, openAuthority } from './authority.ts';
import { writeOutput } from './files.ts';
import { InputError, parseChoice } from './size.ts';

/** Options as commander has them. */
export interface CertsCommandOptions extends AuthorityOptions {
  /** Milan when absent; of `chips` all. */
  readonly product?: string;
  readonly chip?: string;
  readonly tcb?: string;
  readonly der?: boolean;
  readonly out?: string;
}

const KINDS = [
  'root',
  'chain',
  'vlek-chain',
  'vcek',
  'vlek',
  'table',
  'vlek-table',
  'crl',
  'fingerprint',
  'chips',
] as const;
type Kind = (typeof KINDS)[number];

/** What hangs on a chip and its TCB. */
const OF_CHIPS: readonly Kind[] = ['vcek', 'vlek', 'table', 'vlek-table'];
/** What is one certificate or list, which can be had in DER. */
const SINGLE: readonly Kind[] = ['root', 'vcek', 'vlek', 'crl'];

interface File {
  readonly label: string;
  readonly bytes: Uint8Array;
}

export async function certs(what: string, options: CertsCommandOptions): Promise<number> {
  const kind = parseChoice(what, 'certs', KINDS);
  refuseOptionsOfOthers(kind, options);
  const product = parseChoice(options.product ?? 'Milan', '--product', PRODUCTS);
  const tcb = options.tcb === undefined ? undefined : tcbOf(options.tcb, product);
  const authority = openAuthority(options);
  const output = await outputOf(kind, product, authority, options, tcb);
  if (options.out === undefined) process.stdout.write(output);
  else writeOutput(options.out, output, '--out');
  return 0;
}

/** What would change nothing. */
function refuseOptionsOfOthers(kind: Kind, { chip, tcb, der }: CertsCommandOptions): void {
  const refuse = (option: string, kinds: readonly Kind[]): never => {
    const want = `${kinds.slice(0, -1).join(', ')} or ${kinds.at(-1)}`;
    throw new InputError(`${option}: got it with ${kind}, want it with ${want}`);
  };
  if (chip !== undefined && !OF_CHIPS.includes(kind)) refuse('--chip', OF_CHIPS);
  if (tcb !== undefined && !OF_CHIPS.includes(kind)) refuse('--tcb', OF_CHIPS);
  if (der === true && !SINGLE.includes(kind)) refuse('--der', SINGLE);
}

async function outputOf(
  kind: Kind,
  product: Product,
  authority: Authority,
  options: CertsCommandOptions,
  tcb: bigint | undefined,
): Promise<Uint8Array | string> {
  if (kind === 'chips') {
    const chips = authority.chips();
    const wanted =
      options.product === undefined
        ? chips
        : chips.filter(({ personality }) => personality.product === product);
    return wanted.map(lineOf).join('');
  }
  const fingerprint = await authority.fingerprint(product);
  if (kind === 'fingerprint') return `${fingerprint}\n`;
  const files = await filesOf(kind, product, authority, options.chip, tcb);
  console.error(`ARK-${product} ${fingerprint}`);
  const isBinary = options.der === true || kind === 'table' || kind === 'vlek-table';
  return isBinary ? files[0]!.bytes : files.map(({ label, bytes }) => writePem(label, bytes)).join('');
}

function lineOf({ personality, fuses, reportedTcb }: Chip): string {
  const id = Buffer.from(fuses.id).toString('hex');
  return `${personality.product} ${id} reported TCB 0x${reportedTcb.toString(16).padStart(16, '0')}\n`;
}

async function filesOf(
  kind: Exclude<Kind, 'fingerprint' | 'chips'>,
  product: Product,
  authority: Authority,
  chipId: string | undefined,
  tcb: bigint | undefined,
): Promise<File[]> {
  const certificate = (bytes: Uint8Array): File => ({ label: 'CERTIFICATE', bytes });
  const chip = () => chipOf(authority, product, chipId);
  const leafTcb = () => {
    const { reportedTcb } = chip();
    return tcb ?? reportedTcb;
  };
  switch (kind) {
    case 'root':
      return [certificate(await authority.ark(product))];
    case 'chain':
    case 'vlek-chain': {
      const { intermediate, ark } = await authority.chain(kind === 'chain' ? 'vcek' : 'vlek', product);
      return [certificate(intermediate), certificate(ark)];
    }
    case 'vcek':
      return [certificate(await authority.vcek(chip(), leafTcb()))];
    case 'vlek':
      return [certificate(await authority.vlek(product, leafTcb()))];
    case 'crl':
      return [{ label: 'X509 CRL', bytes: await authority.crl(product) }];
    case 'table':
    case 'vlek-table':
      return [
        {
          label: '',
          bytes: await authority.certificateTable(chip(), kind === 'table' ? 'VCEK' : 'VLEK', tcb),
        },
      ];
  }
}

function chipOf(authority: Authority, product: Product, id: string | undefined): Chip {
  if (id === undefined) return authority.chip(generationOf(product));
  const bytes = hwidBytes(product);
  const isId = id.length === 2 * bytes && /^[0-9a-f]*$/i.test(id);
  const chip = isId ? authority.findChip(product, Buffer.from(id, 'hex')) : undefined;
  if (chip === undefined)
    throw new InputError(
      `--chip: got ${textOf(id)}, want the id of a ${product} of this authority, ${bytes} bytes in hex`,
    );
  return chip;
}

function tcbOf(text: string, product: Product): bigint {
  if (!/^0x[0-9a-f]{1,16}$/i.test(text))
    throw new InputError(`--tcb: got ${textOf(text)}, want a TCB_VERSION in hex, such as 0x5218000000000004`);
  const tcb = BigInt(text);
  if (hasReservedTcbBytes(generationOf(product), tcb)) {
    throw new InputError(
      `--tcb: got ${textOf(text)}, want a TCB_VERSION of a ${product}: its reserved bytes are zero`,
    );
  }
  return tcb;
}
