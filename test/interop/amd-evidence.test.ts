/**
 * Evidence of AMD's own hardware and AMD's own certificates, where they lie beside the repository (../shared/data/evidence): read there, never
 * copied.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import {
  parseCertificate,
  parseReport,
  readCertificates,
  reportFromHex,
  verifyReport,
} from '../../src/attest/index.ts';
import { evidenceOf } from '../attest/evidence.ts';

const folder = new URL('../../../shared/data/evidence/', import.meta.url).pathname;
const missing = existsSync(join(folder, 'milan-report.hex'))
  ? undefined
  : 'no evidence of AMD’s beside the repository';
if (missing !== undefined) console.log(`skipped: ${missing}`);
const read = (name: string): Buffer => readFileSync(join(folder, name));
/** While all of AMD's certificates are valid. */
const AT = new Date('2026-11-01T00:00:00Z');

describe.skipIf(missing !== undefined)('AMD’s evidence', () => {
  const chainOf = (product: string, key: string) => readCertificates(read(`${product}-${key}-chain.pem`));
  const rootOf = (product: string): Uint8Array => chainOf(product, 'vcek')[1]!.bytes;
  const bytes = (): Uint8Array => reportFromHex(read('milan-report.hex').toString())!;
  const options = () => ({
    certificates: [read('milan-vcek.der'), chainOf('milan', 'vcek')[0]!.bytes],
    roots: [rootOf('milan')],
    at: AT,
  });

  it('verifies: a Milan’s report with AMD’s root, offline', async () => {
    const verdict = await verifyReport(bytes(), options());
    expect(verdict.failures).toEqual([]);
    expect(verdict.isSoftware).toBe(false);
    expect(Buffer.from(verdict.report!.measurement).toString('hex')).toMatch(/^7a1e5c266c0108db/);
  });

  it('does not verify with any byte of the report changed', async () => {
    // Bytes 0x330 to 0x49f lie behind the signature, which does not cover them; they must be zero.
    const report = bytes();
    const accepted: number[] = [];
    for (let at = 0; at < report.length; at++) {
      report[at]! ^= 1 << (at % 8);
      if ((await verifyReport(report, options())).ok) accepted.push(at);
      report[at]! ^= 1 << (at % 8);
    }
    expect(accepted).toEqual([]);
    expect((await verifyReport(report, options())).ok).toBe(true);
  });

  it('does not verify with any byte of VCEK, ASK or ARK changed', async () => {
    const { certificates, ...more } = options();
    const given = [...certificates, rootOf('milan')].map((one) => Uint8Array.from(one));
    expect((await verifyReport(bytes(), { ...more, certificates: given })).ok).toBe(true);
    const accepted: [number, number][] = [];
    for (const [index, certificate] of given.entries()) {
      for (let at = 0; at < certificate.length; at++) {
        certificate[at]! ^= 1 << (at % 8);
        if ((await verifyReport(bytes(), { ...more, certificates: given })).ok) accepted.push([index, at]);
        certificate[at]! ^= 1 << (at % 8);
      }
    }
    expect(accepted).toEqual([]);
  }, 60_000);

  it('is not trusted with our root', async () => {
    const ours = await evidenceOf('milan');
    const { failures } = await verifyReport(bytes(), { ...options(), roots: ours.options.roots });
    expect(failures.map(({ name }) => name)).toEqual(['ASK.signature']);
    const whole = {
      ...options(),
      certificates: [...options().certificates, rootOf('milan')],
      roots: ours.options.roots,
    };
    expect((await verifyReport(bytes(), whole)).failures.map(({ name }) => name)).toEqual(['ARK.trusted']);
  });

  it.each(['milan', 'genoa', 'turin'] as const)(
    'has roots that do not trust our evidence of a %s',
    async (generation) => {
      const { report, options: ours } = await evidenceOf(generation);
      const { failures } = await verifyReport(report, { ...ours, roots: [rootOf(generation)] });
      expect(failures.map(({ name }) => name)).toEqual(['ARK.trusted']);
      const without = { ...ours, roots: [rootOf(generation)], certificates: ours.certificates.slice(0, 2) };
      expect((await verifyReport(report, without)).failures.map(({ name }) => name)).toContain(
        'ASK.signature',
      );
    },
  );

  it.each(['milan', 'genoa', 'turin'])('has chains of %s that hold, and are read whole', async (product) => {
    for (const [key, kind] of [
      ['vcek', 'ASK'],
      ['vlek', 'ASVK'],
    ] as const) {
      const [middle, root] = chainOf(product, key);
      expect([middle!.kind, root!.kind, root!.isSoftware]).toEqual([kind, 'ARK', false]);
      const { checks } = await verifyReport(bytes(), {
        certificates: [middle!.bytes, root!.bytes],
        roots: [root!.bytes],
        at: AT,
      });
      const held = checks.filter(({ name }) => name.startsWith('ARK.'));
      expect(held.filter(({ ok }) => !ok)).toEqual([]);
    }
  });

  it('has a Turin’s VCEK: 8 bytes of id, FMC, no explicit trailer', () => {
    const vcek = parseCertificate(read('turin-vcek.der'));
    expect(vcek).toMatchObject({
      kind: 'VCEK',
      product: 'Turin',
      amd: { productName: 'Turin', structVersion: 1 },
    });
    expect(vcek.amd.hwid).toHaveLength(8);
    expect(vcek.amd.levels.get('1.3.6.1.4.1.3704.1.3.9')).toBe(0);
    expect(vcek.signatureAlgorithm.pss?.trailer).toBe(1);
  });

  it('shows what the report says', () => {
    const report = parseReport(bytes());
    expect(report).toMatchObject({
      version: 2,
      policy: 0x30000n,
      vmpl: 0,
      signingKey: 'VCEK',
      reservedByteSet: undefined,
    });
    expect(report.reportedTcb).toBe(0x7308_0000_0000_0003n);
  });
});
