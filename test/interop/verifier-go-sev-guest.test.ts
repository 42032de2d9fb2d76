/**
 * go-sev-guest judges what a guest of ours gets: report and certificate table, with our root given to it; and fetches from our key distribution
 * server what AMD's would give it.
 *
 * Its limit: v0.15.0 refuses a Turin's VCEK and VLEK, AMD's as well, since it does not know their extension of the FMC's level
 * (1.3.6.1.4.1.3704.1.3.9) and wants one of spl4, which they have not. There its parts judge: chain, and the report's format and signature.
 */
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { CERTIFICATE_GUID, encodeCertificateTable } from '../../src/abi/certificate-table.ts';
import { writePem } from '../../src/abi/pem.ts';
import { KeyServer } from '../../src/authority/kds.ts';
import { CASES, evidenceFor, type PeerEvidence, peerAuthority } from './peers/evidence.ts';
import { goPeer, run } from './peers/install.ts';
import { runAttester } from './peers/real-run.ts';

const peer = await goPeer('go-sev-guest');
if (peer.missing !== undefined) console.log(`skipped: ${peer.missing}`);

const folder = mkdtempSync(join(tmpdir(), 'softcvm-go-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

/** What the peer says of a report, with options by name. Bytes become files. */
async function judge(
  report: Uint8Array,
  options: Record<string, string | Uint8Array | undefined>,
): Promise<string> {
  const args = Object.entries({ report, ...options }).flatMap(([name, value]) => {
    if (value === undefined) return [];
    if (typeof value === 'string') return [`-${name}=${value}`];
    const path = join(folder, name);
    writeFileSync(path, value);
    return [`-${name}=${path}`];
  });
  const { status, output } = await run(peer.program!, args);
  const line = output.split('\n').at(-1)!;
  expect(status).toBe(line === 'verified' ? 0 : 1);
  return line;
}

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);
const UNKNOWN_FMC = 'not an AMD KDS OID: 1.3.6.1.4.1.3704.1.3.9';

describe.skipIf(peer.missing !== undefined)('go-sev-guest', () => {
  describe.each(CASES)(
    'on a report of a $generation, version $version, signed by its $key',
    async (which) => {
      const evidence: PeerEvidence = await evidenceFor(which);
      const { report, product, table, version } = evidence;
      const isTurin = which.generation === 'turin';
      const options = {
        product,
        table,
        roots: bytesOf(evidence.chainPem),
        vmpl: '1',
        'report-data': hex(evidence.reportData),
        measurement: hex(report.subarray(0x90, 0xc0)),
        ...(isTurin && { parts: 'true' }),
      };
      const verdict = (changed: Uint8Array, more: Parameters<typeof judge>[1] = {}): Promise<string> =>
        judge(changed, { ...options, ...more });

      it('verifies it with our root', async () => {
        expect(report[0]).toBe(version);
        expect(await verdict(report)).toBe('verified');
      });

      it('does not verify it with AMD’s root', async () => {
        expect(await verdict(report, { roots: undefined })).toMatch(
          /certificate signed by unknown authority/,
        );
      });

      it('does not verify it with a bit of the signed part or of the signature changed', async () => {
        // Host data, measurement, report data, reported TCB, the chip's id; R and S.
        for (const at of [0x50, 0x90, 0xc0, 0x180, 0x187, 0x1a0, 0x2a0, 0x2e8]) {
          const changed = report.slice();
          changed[at]! ^= 1;
          expect(await verdict(changed), `byte ${at}`).not.toBe('verified');
        }
      });

      it('does not verify it with a changed certificate', async () => {
        const changed = table.slice();
        const at = Buffer.from(table).indexOf(Buffer.from(evidence.leaf));
        changed[at + evidence.leaf.length - 1]! ^= 1;
        expect(await verdict(report, { table: changed })).toMatch(/verification error|unknown authority/);
      });

      if (isTurin) {
        it('knows no more of a Turin than those parts', async () => {
          expect(await verdict(report, { parts: undefined })).toBe(UNKNOWN_FMC);
        });
      } else {
        it('refuses other expectations than it meets', async () => {
          expect(await verdict(report, { vmpl: '0' })).toBe('report VMPL 1 is not 0');
          const other = '00'.repeat(48);
          expect(await verdict(report, { measurement: other })).toContain('MEASUREMENT');
          expect(await verdict(report, { 'report-data': '00'.repeat(64) })).toContain('REPORT_DATA');
        });
      }
    },
  );

  describe.each(['milan', 'genoa'] as const)('with our key distribution server, for a %s', (generation) => {
    it('fetches chain, VCEK and revocation list, and refuses a revoked ASK', async () => {
      const { report, product, chainPem } = await evidenceFor({ generation, key: 'VCEK', version: 3 });
      const authority = peerAuthority();
      const asked: string[] = [];
      const server = new KeyServer(authority, { onRequest: (_method, url) => asked.push(url) });
      const kds = await server.listen();
      const options = { product, roots: bytesOf(chainPem), vmpl: '1', kds };
      expect(await judge(report, options)).toBe('verified');
      expect(asked).toEqual([
        `/vcek/v1/${product}/cert_chain`,
        expect.stringMatching(new RegExp(`^/vcek/v1/${product}/${hex(report.subarray(0x1a0, 0x1e0))}\\?`)),
        `/vcek/v1/${product}/crl`,
      ]);
      authority.revoke(product, 'ASK');
      expect(await judge(report, options)).toContain('ASK was revoked');
      server.answer('429');
      expect(await judge(report, options)).toContain('status 429');
      await server.close();
    });
  });

  it.each(['Milan', 'Genoa', 'Turin'] as const)('verifies what a guest on a %s printed', async (product) => {
    const { report, table, measurement, guestData } = await runAttester(product, 7);
    const { intermediate, ark } = await peerAuthority().chain('vcek', product);
    const options = {
      product,
      table,
      measurement,
      roots: bytesOf(writePem('CERTIFICATE', intermediate) + writePem('CERTIFICATE', ark)),
      'report-data': guestData,
      ...(product === 'Turin' && { parts: 'true' }),
    };
    expect(await judge(report, options)).toBe('verified');
    expect(await judge(report, { ...options, roots: undefined })).toContain('unknown authority');
  });

  const amd = new URL('../../../shared/data/evidence/', import.meta.url).pathname;
  const noAmd = existsSync(join(amd, 'milan-report.hex'))
    ? undefined
    : 'no evidence of AMD’s beside the repository';
  if (noAmd !== undefined) console.log(`skipped: ${noAmd}`);

  it.skipIf(noAmd !== undefined)('does not verify AMD’s own report with our root', async () => {
    const report = Buffer.from(
      readFileSync(join(amd, 'milan-report.hex'), 'utf8').replace(/\s+/g, ''),
      'hex',
    );
    const ours = await evidenceFor({ generation: 'milan', key: 'VCEK', version: 3 });
    const table = encodeCertificateTable([
      { guid: CERTIFICATE_GUID.VCEK, bytes: readFileSync(join(amd, 'milan-vcek.der')) },
    ]);
    const options = { product: 'Milan', table, parts: 'true' };
    expect(await judge(report, options)).toBe('verified');
    expect(await judge(report, { ...options, roots: bytesOf(ours.chainPem) })).toContain('unknown authority');
  });
});
