/** Which key signs a report that a guest asks for by KEY_SEL, from /dev/sev on the host to the relying party: the chip's VCEK, or the VLEK that a provider loaded. */
import { describe, expect, it } from 'vitest';
import { verifyReport } from '../../../src/attest/index.ts';
import { Authority } from '../../../src/authority/authority.ts';
import { GhcbBench } from './ghcb-bench.ts';
import { GuestMessages } from './guest-messages.ts';
import { SECRETS, SHARED } from './snp-bench.ts';

const RESPONSE = SHARED + 0x1000;
const INVALID_KEY = 0x27n;
const DATA = new Uint8Array(64).fill(0x5a);

async function guest(key: 'VCEK' | 'VLEK') {
  const authority = Authority.seeded(5);
  const chip = authority.chip('genoa');
  const bench = new GhcbBench({ chip, launch: (snp) => snp.update(5, SECRETS, 4096) }).register();
  const { process, sevFd } = bench.snp;
  const loaded = await authority.loadedKey(chip);
  const data = new Uint8Array(16);
  data[0] = 16;
  if (key === 'VLEK') process.sevIssueCommand(sevFd, { cmd: 12, data, blob: loaded.wrapped });
  const messages = new GuestMessages(bench.snp);
  const { leaf, intermediate, ark } = await authority.certificates(chip);
  return {
    chains: {
      VCEK: [leaf, intermediate, ark],
      VLEK: [loaded.chain.leaf, loaded.chain.intermediate, loaded.chain.ark],
    },
    root: ark,
    /** The report, or firmware's status in the answer. */
    ask(keySelect: number): Uint8Array | number {
      const payload = new Uint8Array(96);
      payload.set(DATA);
      payload[0x44] = keySelect;
      bench.write(SHARED, messages.seal(5, payload));
      bench.request({ code: 0x8000_0011n, info1: BigInt(SHARED), info2: BigInt(RESPONSE) });
      expect(bench.answer).toEqual([0n, 0n]);
      const answer = messages.open(bench.snp.read(RESPONSE, 4096));
      const status = new DataView(answer.buffer, answer.byteOffset).getUint32(0, true);
      return status === 0 ? answer.slice(0x20) : status;
    },
  };
}

describe('a report that a guest asks for by KEY_SEL', () => {
  // KEY_SEL 0 (VLEK if there is one, else VCEK), 1 (VCEK), 2 (VLEK), 3 (nobody's).
  const ROWS = [
    ['VCEK', ['VCEK', 'VCEK', INVALID_KEY, INVALID_KEY]],
    ['VLEK', ['VLEK', 'VCEK', 'VLEK', INVALID_KEY]],
  ] as const;
  for (const [loaded, signers] of ROWS)
    for (const [keySelect, signer] of signers.entries())
      it(`on a chip with ${loaded === 'VLEK' ? 'a' : 'no'} VLEK, KEY_SEL ${keySelect}: ${signer}`, async () => {
        const { ask, chains, root } = await guest(loaded);
        const report = ask(keySelect);
        if (typeof signer === 'bigint') {
          expect(report).toBe(Number(signer));
          return;
        }
        const other = signer === 'VCEK' ? 'VLEK' : 'VCEK';
        const judged = (key: 'VCEK' | 'VLEK') =>
          verifyReport(report as Uint8Array, {
            certificates: chains[key],
            roots: [root],
            policy: { signingKey: signer, reportData: DATA },
          });
        expect((await judged(signer)).failures).toEqual([]);
        expect((await judged(other)).ok).toBe(false);
      });
});
