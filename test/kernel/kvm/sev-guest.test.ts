/** The guest's driver against our KVM: what test/guest shows with firmware alone, here by GHCB, with a VMM that serves certificates (reference facts 5.5, 5.6, 6.1). */
import { describe, expect, it } from 'vitest';
import { SevGuest } from '../../../src/guest/sev-guest.ts';
import { TsmReports } from '../../../src/guest/tsm-report.ts';
import { GhcbTransport } from './ghcb-transport.ts';

const TABLE = Uint8Array.from({ length: 5000 }, (_, i) => (i * 7) & 0xff);

/** A table as a VMM's file has it: VCEK of 900 bytes at 72, ASK of 3900 bytes at 1000, and 100 bytes that no entry names. */
const CERTIFICATES = TABLE.slice();
CERTIFICATES.fill(0, 0, 72);
for (const [at, guid, offset, bytes] of [
  [0, '63da758de6644564adc5f4b93be8accd', 72, 900],
  [24, '4ab7b379bbac4fe4a02f05aef327c782', 1000, 3900],
] as const) {
  CERTIFICATES.set(Buffer.from(guid, 'hex'), at);
  CERTIFICATES.set(new Uint8Array(Uint32Array.of(offset, bytes).buffer), at + 16);
}

function reportData(fill: number): Uint8Array {
  const data = new Uint8Array(96);
  data.fill(fill, 0, 64);
  return data;
}
const call = (fill: number) => ({ version: 1, data: reportData(fill), exitInfo2: 0n });
const dataOf = (response: Uint8Array) => response.subarray(0x20 + 0x50, 0x20 + 0x90);

const LANDED = {};
for (const [form, options] of [
  ['the landed form', LANDED],
  ['the form of seed 001', { early: ['certs'] }],
] as const)
  describe(`/dev/sev-guest through a GHCB, ${form}`, () => {
    it('gets reports and keys one after another, with the sequence numbers that firmware wants', async () => {
      const device = new SevGuest(new GhcbTransport(TABLE, options));
      for (const fill of [1, 2, 3])
        expect(dataOf(await device.getReport(call(fill)))).toEqual(new Uint8Array(64).fill(fill));
      const key = () => device.getDerivedKey({ version: 1, data: new Uint8Array(32), exitInfo2: 0n });
      const first = await key();
      expect(first.subarray(0x20).some((byte) => byte !== 0)).toBe(true);
      expect(await key()).toEqual(first);
    });

    it('learns how much room the certificates need, and gets them beside the report', async () => {
      const transport = new GhcbTransport(TABLE, options);
      const device = new SevGuest(transport);
      const small = { ...call(4), certificates: undefined, certificatesLength: 0 };
      await expect(device.getExtendedReport(small)).rejects.toMatchObject({ code: 'EIO' });
      expect([small.exitInfo2, small.certificatesLength]).toEqual([0x1_0000_0000n, 8192]);

      const certificates = new Uint8Array(8192);
      const large = { ...call(5), certificates, certificatesLength: 0 };
      expect(dataOf(await device.getExtendedReport(large))).toEqual(new Uint8Array(64).fill(5));
      expect([large.exitInfo2, certificates.subarray(0, 5000)]).toEqual([0n, TABLE]);
      expect(transport.isUnlocked).toBe(true);
      expect(dataOf(await device.getReport(call(6)))).toEqual(new Uint8Array(64).fill(6));
    });

    it('has report and certificate table in configfs, as far as the table reaches', async () => {
      const transport = new GhcbTransport(CERTIFICATES, options);
      const entry = new TsmReports(new SevGuest(transport), 0).mkdir('mine');
      entry.inblob = new Uint8Array(64).fill(9);
      expect(await entry.auxblob()).toEqual(CERTIFICATES.subarray(0, 4900));
      expect((await entry.outblob()).subarray(0x50, 0x90)).toEqual(new Uint8Array(64).fill(9));
      expect(transport.asked).toBe(options === LANDED ? 1 : 2);
      expect(transport.isUnlocked).toBe(true);
    });

    it('waits while the VMM is busy, and then has its report', async () => {
      const transport = new GhcbTransport(TABLE, options);
      const device = new SevGuest(transport);
      transport.busy = 3;
      const request = { ...call(7), certificates: new Uint8Array(8192), certificatesLength: 0 };
      expect(dataOf(await device.getExtendedReport(request))).toEqual(new Uint8Array(64).fill(7));
      expect(transport.slept).toBe(6000);
    });

    it('gives its key up where the VMM is busy for a minute; the guest goes on without reports', async () => {
      const transport = new GhcbTransport(TABLE, options);
      const device = new SevGuest(transport);
      transport.busy = 1000;
      const request = { ...call(8), certificates: new Uint8Array(8192), certificatesLength: 0 };
      await expect(device.getExtendedReport(request)).rejects.toMatchObject({ code: 'ETIMEDOUT' });
      transport.busy = 0;
      const { asked } = transport;
      await expect(device.getReport(call(8))).rejects.toMatchObject({ code: 'ENOTTY' });
      expect(transport.asked).toBe(asked);
    });
  });
