import { createPublicKey, verify } from 'node:crypto';
import { afterEach, describe, expect, it } from 'vitest';
import { hex, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

/** R and S of a report, 48 bytes big endian each. */
function signatureOf(report: Uint8Array): Uint8Array {
  const number = (at: number) => Buffer.from(report.subarray(at, at + 48)).reverse();
  return Buffer.concat([number(0x2a0), number(0x2e8)]);
}

const isSigned = (report: Uint8Array, spki: Uint8Array): boolean =>
  verify(
    'sha384',
    report.subarray(0, 0x2a0),
    {
      key: createPublicKey({ key: Buffer.from(spki), format: 'der', type: 'spki' }),
      dsaEncoding: 'ieee-p1363',
    },
    signatureOf(report),
  );

describe('attestation reports', () => {
  it.each(['milan', 'genoa', 'turin'] as const)(
    'of a %s verify with the VCEK of the reported TCB',
    (generation) => {
      machine = new Machine({ generation }).init();
      const data = new Uint8Array(64).fill(0x5a);
      const { status, report } = machine.runGuest().report({ data });
      expect(status).toBe(0);
      expect(isSigned(report, machine.chip.vcek(machine.chip.reportedTcb).spki)).toBe(true);
      expect(hex(report.subarray(0x50, 0x90))).toBe('5a'.repeat(64));
      expect(hex(report.subarray(0x90, 0xc0))).toBe(
        'db3c7f4839ea105f9898622ca76eebb484cd8dfd0cad5d0d839faf5c13eb56c226cce911ddb9adddeb5a75af277ce951',
      );
      expect(report[0]).toBe({ milan: 2, genoa: 3, turin: 5 }[generation]);
    },
  );
});
