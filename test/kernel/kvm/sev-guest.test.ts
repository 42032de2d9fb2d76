/** The guest's driver against our KVM: what test/guest shows with firmware alone, here by GHCB, with a VMM that serves certificates (reference facts 5.5, 5.6, 6.1). */
import { describe, expect, it } from 'vitest';
import { SevGuest } from '../../../src/guest/sev-guest.ts';
import { GhcbTransport } from './ghcb-transport.ts';

const TABLE = Uint8Array.from({ length: 5000 }, (_, i) => (i * 7) & 0xff);

function reportData(fill: number): Uint8Array {
  const data = new Uint8Array(96);
  data.fill(fill, 0, 64);
  return data;
}
const call = (fill: number) => ({ version: 1, data: reportData(fill), exitInfo2: 0n });
const dataOf = (response: Uint8Array) => response.subarray(0x20 + 0x50, 0x20 + 0x90);

for (const [form, options] of [
  ['the landed form', {}],
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
