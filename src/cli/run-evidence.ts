/** Evidence as `softcvm run` leaves it: what `--json` printed, or a console on which the guest printed it. */
import { type PrintedCertificate, type PrintedEvidence, printedEvidence } from '../attest/index.ts';
import { fromHex } from '../base/hex.ts';
import { InputError } from './size.ts';

/** Undefined: the file is neither. Throws InputError that calls the file `name`: JSON of something else. */
export function runEvidence(file: Buffer, name: string): PrintedEvidence | undefined {
  const text = file.toString('utf8');
  if (!/^\s*\{\s*"/.test(text))
    return /^SNP-(REPORT|CERTIFICATES) /m.test(text) ? printedEvidence(text) : undefined;
  const { report, certificates } = parseObject(text, name);
  if (report !== undefined && !isHex(report)) throw notOfRun(name, 'report', 'hex');
  if (certificates !== undefined && !isCertificates(certificates))
    throw notOfRun(name, 'certificates', 'objects with kind and pem');
  return {
    ...(report === undefined ? {} : { report: fromHex(report) }),
    ...(certificates === undefined ? {} : { certificates }),
  };
}

function parseObject(text: string, name: string): Record<string, unknown> {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new InputError(
      `${name}: got JSON that cannot be read (${(error as Error).message}), want what softcvm run --json prints`,
    );
  }
}

const isHex = (value: unknown): value is string =>
  typeof value === 'string' && /^([0-9a-f]{2})+$/i.test(value);

const isCertificates = (value: unknown): value is PrintedCertificate[] =>
  Array.isArray(value) && value.every((one) => typeof one?.kind === 'string' && typeof one.pem === 'string');

const notOfRun = (name: string, field: string, want: string): InputError =>
  new InputError(`${name}: got JSON whose "${field}" is something else than ${want}`);
