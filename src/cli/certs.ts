/**
 * `softcvm certs`: what an authority has issued, as files. Says the root's fingerprint on stderr, since somebody has to compare it before trusting
 * it.
 */
import type { Product } from '../abi/amd-certificate.ts';
import { generationOf, PRODUCTS } from '../abi/amd-certificate.ts';
import { writePem } from '../abi/pem.ts';
import { hasReservedTcbBytes } from '../abi/tcb-version.ts';
import type { Authority } from '../authority/authority.ts';
import { type AuthorityOptions, openAuthority } from './authority.ts';
import { writeOutput } from './files.ts';
import { InputError, parseChoice } from './size.ts';

/** Options as commander has them. */
export interface CertsCommandOptions extends AuthorityOptions {
  readonly product: string;
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

interface File {
  readonly label: string;
  readonly bytes: Uint8Array;
}

export async function certs(what: string, options: CertsCommandOptions): Promise<number> {
  const kind = parseChoice(what, 'certs', KINDS);
  const product = parseChoice(options.product, '--product', PRODUCTS);
  const tcb = options.tcb === undefined ? undefined : tcbOf(options.tcb, product);
  const authority = openAuthority(options);
  if (kind === 'chips') {
    for (const chip of authority.chips()) {
      const id = Buffer.from(chip.fuses.id).toString('hex');
      console.log(
        `${chip.personality.product} ${id} reported TCB 0x${chip.reportedTcb.toString(16).padStart(16, '0')}`,
      );
    }
    return 0;
  }
  const fingerprint = await authority.fingerprint(product);
  if (kind === 'fingerprint') {
    console.log(fingerprint);
    return 0;
  }
  console.error(`ARK-${product} ${fingerprint}`);
  const files = await filesOf(kind, product, authority, options.chip, tcb);
  if (options.der && files.length > 1)
    throw new InputError(`--der: got ${files.length} certificates, want PEM for them`);
  const isBinary = options.der === true || kind === 'table' || kind === 'vlek-table';
  const output = isBinary
    ? files[0]!.bytes
    : files.map(({ label, bytes }) => writePem(label, bytes)).join('');
  if (options.out === undefined) process.stdout.write(output);
  else writeOutput(options.out, output, '--out');
  return 0;
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
  switch (kind) {
    case 'root':
      return [certificate(await authority.ark(product))];
    case 'chain':
    case 'vlek-chain': {
      const { intermediate, ark } = await authority.chain(kind === 'chain' ? 'vcek' : 'vlek', product);
      return [certificate(intermediate), certificate(ark)];
    }
    case 'vcek':
      return [certificate(await authority.vcek(chip(), tcb ?? chip().reportedTcb))];
    case 'vlek':
      return [certificate(await authority.vlek(product, tcb ?? chip().reportedTcb))];
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

function chipOf(
  authority: Authority,
  product: Product,
  id: string | undefined,
): ReturnType<Authority['chip']> {
  if (id === undefined) return authority.chip(generationOf(product));
  const chip = authority.findChip(product, Buffer.from(id, 'hex'));
  if (chip === undefined)
    throw new InputError(`--chip: got ${id}, want the id of a ${product} of this authority`);
  return chip;
}

function tcbOf(text: string, product: Product): bigint {
  if (!/^0x[0-9a-f]{1,16}$/i.test(text))
    throw new InputError(`--tcb: got ${text}, want a TCB_VERSION in hex, such as 0x5218000000000004`);
  const tcb = BigInt(text);
  if (hasReservedTcbBytes(generationOf(product), tcb)) {
    throw new InputError(
      `--tcb: got ${text}, want a TCB_VERSION of a ${product}: its reserved bytes are zero`,
    );
  }
  return tcb;
}
