/** Evidence that is malformed: refused by name, without a crash. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  DerError,
  EvidenceError,
  parseCertificate,
  parseCrl,
  parseFirmware,
  parseReport,
  readCertificates,
  reportFromHex,
  verifyReport,
} from '../../src/attest/index.ts';
import { evidenceOf, NOW } from './evidence.ts';
import { firmwareImage } from './firmware-image.ts';

const { report, options } = await evidenceOf('milan');
const [vcek, ask] = options.certificates as [Uint8Array, Uint8Array, Uint8Array];
const crl = options.crls![0]!;

/** Changes to bytes: some overwritten, cut off, or added. */
const change = fc.record({
  writes: fc.array(fc.tuple(fc.nat(), fc.nat(255)), { maxLength: 4 }),
  cut: fc.option(fc.nat(), { freq: 4 }),
  more: fc.uint8Array({ maxLength: 8 }),
});
type Change = { writes: [number, number][]; cut: number | null; more: Uint8Array };
function apply(bytes: Uint8Array, { writes, cut, more }: Change): Uint8Array {
  const changed = bytes.slice(0, cut === null ? undefined : cut % bytes.length);
  for (const [at, byte] of writes) if (changed.length > 0) changed[at % changed.length] = byte;
  return Uint8Array.from([...changed, ...more]);
}
const isNamed = (error: unknown): boolean =>
  (error instanceof DerError || error instanceof EvidenceError) &&
  /: .*got .*want |after its last field/.test(error.message);

describe('malformed', () => {
  it.each([
    ['certificates', (bytes: Uint8Array) => parseCertificate(bytes, 'VCEK'), vcek],
    ['CA certificates', (bytes: Uint8Array) => parseCertificate(bytes, 'ASK'), ask],
    ['revocation lists', (bytes: Uint8Array) => parseCrl(bytes), crl],
    ['reports', (bytes: Uint8Array) => parseReport(bytes), report],
    ['firmware images', (bytes: Uint8Array) => parseFirmware(bytes), firmwareImage()],
  ])('%s give an error that names the field, or are read', (_what, parse, bytes) => {
    fc.assert(
      fc.property(change, (one) => {
        try {
          parse(apply(bytes, one));
        } catch (error) {
          expect([isNamed(error), String(error)]).toEqual([true, String(error)]);
        }
      }),
      { numRuns: 400 },
    );
  });

  it('evidence of any kind gets a verdict, never a crash', async () => {
    await fc.assert(
      fc.asyncProperty(change, change, change, change, async (a, b, c, d) => {
        const verdict = await verifyReport(apply(report, a), {
          certificates: [apply(vcek, b), apply(ask, c)],
          crls: [apply(crl, d)],
          roots: options.roots,
          at: NOW,
        });
        expect(verdict.failures.length === 0).toBe(verdict.ok);
      }),
      { numRuns: 100 },
    );
  });

  it.each([
    ['', 'got 0 bytes'],
    ['-----BEGIN CERTIFICATE-----\nMIIB', 'got 1 BEGIN lines and 0 whole blocks'],
    ['-----BEGIN CERTIFICATE-----\nMI*B\n-----END CERTIFICATE-----', 'want base64'],
    ['-----BEGIN CERTIFICATE-----\nMIIB\n-----END X509 CRL-----', 'got END X509 CRL, want END CERTIFICATE'],
    ['-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----', 'without a CERTIFICATE'],
    ['-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----', 'certificate 0.Certificate: got '],
  ])('PEM %j is refused', (text, message) => {
    const read = () => readCertificates(Buffer.from(text), 'file');
    if (text === '') expect(read).toThrow('file.Certificate: got the end');
    else expect(read).toThrow(message);
  });

  it('parameters of a key’s algorithm are refused, also where nobody knows the algorithm', () => {
    const hex = Buffer.from(vcek).toString('hex').replace('06072a8648ce3d0201', '06032a8648ce3d0201');
    expect(() => parseCertificate(Buffer.from(hex, 'hex'))).toThrow('.algorithm.parameters: got ');
  });

  it.each([0, 1, 1183, 1185, 0x20 + 1183])('a report of %i bytes is refused', (length) => {
    expect(() => parseReport(new Uint8Array(length))).toThrow(`report: got ${length} bytes, want 1184`);
  });

  it('hex of a report is read with white space, and nothing else is taken for it', () => {
    const hex = Buffer.from(report).toString('hex');
    expect(reportFromHex(hex.replace(/(.{64})/g, '$1\n'))).toEqual(report);
    expect(reportFromHex(hex.slice(2))).toBeUndefined();
    expect(reportFromHex(`${hex.slice(1)}g`)).toBeUndefined();
  });
});
