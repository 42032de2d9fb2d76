/** openssl judges what the authority issues and what a chip signs, where it is installed. */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, it } from 'vitest';
import { writePem } from '../../src/abi/pem.ts';
import { parseReport } from '../../src/attest/report.ts';
import { Authority } from '../../src/authority/authority.ts';
import { evidenceOf } from '../attest/evidence.ts';

const version = spawnSync('openssl', ['version'], { encoding: 'utf8' });
const missing = version.status === 0 ? undefined : 'openssl is not installed';
if (missing !== undefined) console.log(`skipped: ${missing}`);

const folder = mkdtempSync(join(tmpdir(), 'softcvm-openssl-'));
afterAll(() => rmSync(folder, { recursive: true }));
const file = (name: string, bytes: Uint8Array | string): string => {
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
};
const pem = (name: string, bytes: Uint8Array, label = 'CERTIFICATE'): string =>
  file(name, writePem(label, bytes));
/** Exit status and all output. */
function openssl(...args: string[]): { status: number | null; output: string } {
  const { status, stdout, stderr } = spawnSync('openssl', args, { encoding: 'utf8' });
  return { status, output: stdout + stderr };
}
const AT = String(Date.UTC(2026, 5, 1) / 1000);

describe.skipIf(missing !== undefined)('openssl', () => {
  describe.each(['milan', 'genoa', 'turin'] as const)('on evidence of a %s', async (generation) => {
    const { authority, chip, report, options } = await evidenceOf(generation);
    const { product } = chip.personality;
    const [leaf, middle, root] = options.certificates as [Uint8Array, Uint8Array, Uint8Array];
    const [vcek, ask, ark] = [
      pem(`${product}-vcek`, leaf),
      pem(`${product}-ask`, middle),
      pem(`${product}-ark`, root),
    ];

    it('verifies VCEK and VLEK up to the ARK, strictly', async () => {
      const strict = ['verify', '-x509_strict', '-check_ss_sig', '-attime', AT, '-CAfile', ark];
      expect(openssl(...strict, '-untrusted', ask, vcek)).toEqual({ status: 0, output: `${vcek}: OK\n` });
      const { chain } = await authority.loadedKey(chip);
      const vlek = pem(`${product}-vlek`, chain.leaf);
      expect(openssl(...strict, '-untrusted', pem(`${product}-asvk`, chain.intermediate), vlek).status).toBe(
        0,
      );
    });

    it('refuses a VCEK under another ASK, and a changed one', async () => {
      const { chain } = await authority.loadedKey(chip);
      const wrong = pem(`${product}-wrong`, chain.intermediate);
      expect(openssl('verify', '-attime', AT, '-CAfile', ark, '-untrusted', wrong, vcek).status).not.toBe(0);
      const changed = leaf.slice();
      changed[changed.length - 1]! ^= 1;
      const path = pem(`${product}-changed`, changed);
      expect(openssl('verify', '-attime', AT, '-CAfile', ark, '-untrusted', ask, path).status).not.toBe(0);
    });

    it('verifies the revocation list, and finds what is revoked', async () => {
      const check = (list: string) =>
        openssl('verify', '-crl_check', '-attime', AT, '-CAfile', ark, '-CRLfile', list, ask);
      const list = pem(`${product}-crl`, options.crls![0]!, 'X509 CRL');
      expect(openssl('crl', '-in', list, '-noout', '-CAfile', ark).output).toContain('verify OK');
      expect(check(list).status).toBe(0);
      const own = Authority.seeded(7);
      own.revoke(product, 'ASK');
      const revoked = check(pem(`${product}-revoked`, await own.crl(product), 'X509 CRL'));
      expect(revoked.status).not.toBe(0);
      expect(revoked.output).toContain('certificate revoked');
    });

    it('verifies the report’s signature with the VCEK', () => {
      const { signedBytes, p1363 } = parseReport(report);
      const integer = (bytes: Uint8Array): Buffer => {
        let digits = Buffer.from(bytes);
        while (digits[0] === 0) digits = digits.subarray(1);
        const content = digits[0]! >= 0x80 ? Buffer.concat([Buffer.of(0), digits]) : digits;
        return Buffer.concat([Buffer.of(2, content.length), content]);
      };
      const numbers = Buffer.concat([integer(p1363!.subarray(0, 48)), integer(p1363!.subarray(48))]);
      const signature = file(
        `${product}-signature`,
        Buffer.concat([Buffer.of(0x30, numbers.length), numbers]),
      );
      const key = file(`${product}-key`, openssl('x509', '-in', vcek, '-noout', '-pubkey').output);
      const verify = (message: string) =>
        openssl('dgst', '-sha384', '-verify', key, '-signature', signature, message);
      expect(verify(file(`${product}-signed`, signedBytes)).output).toBe('Verified OK\n');
      const changed = signedBytes.slice();
      changed[0x90]! ^= 1;
      expect(verify(file(`${product}-tampered`, changed)).status).not.toBe(0);
    });
  });
});
