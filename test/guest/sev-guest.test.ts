import { createCipheriv, createDecipheriv } from 'node:crypto';
import { afterEach, beforeEach, describe, expect, it } from 'vitest';
import { SevGuest } from '../../src/guest/sev-guest.ts';
import { TsmReports } from '../../src/guest/tsm-report.ts';
import { FirmwareTransport } from './firmware-transport.ts';

let transport: FirmwareTransport;
let device: SevGuest;
beforeEach(() => {
  transport = new FirmwareTransport();
  device = new SevGuest(transport);
});
afterEach(() => transport.close());

const report = (fill = 0x5a) => ({ version: 1, data: reportData(fill), exitInfo2: 0n });
function reportData(fill: number): Uint8Array {
  const data = new Uint8Array(96);
  data.fill(fill, 0, 64);
  return data;
}
const extended = (certificates: Uint8Array | undefined) => ({
  ...report(),
  certificates,
  certificatesLength: 0,
});
const sequence = () => new DataView(transport.secrets.buffer).getUint32(0xa0, true);
/** Firmware's answer, of whatever kind, sealed again with a change: what the guest's key authenticates all the same. */
const sealAgain = (change: (header: Uint8Array, payload: Uint8Array) => Uint8Array) => ({
  spoil: (page: Uint8Array) => {
    const key = transport.secrets.slice(0x20, 0x40);
    const iv = Buffer.concat([page.subarray(0x20, 0x28), Buffer.alloc(4)]);
    const size = page[0x36]! | (page[0x37]! << 8);
    const decipher = createDecipheriv('aes-256-gcm', key, iv).setAAD(page.subarray(0x30, 0x60));
    const payload = change(page, new Uint8Array(decipher.update(page.subarray(0x60, 0x60 + size))));
    const cipher = createCipheriv('aes-256-gcm', key, iv).setAAD(page.subarray(0x30, 0x60));
    page.set(cipher.update(payload), 0x60);
    cipher.final();
    page.set(cipher.getAuthTag(), 0);
  },
});
const errnoOf = (call: Promise<unknown>): Promise<string> =>
  call.then(
    () => 'none',
    (error: { code?: string }) => error.code ?? String(error),
  );

describe('SNP_GET_REPORT', () => {
  it('brings a report with the data that was asked for, and uses two sequence numbers', async () => {
    const request = report();
    const response = await device.getReport(request);
    const view = new DataView(response.buffer);
    expect(response.length).toBe(4000);
    expect(view.getUint32(0, true)).toBe(0);
    expect(view.getUint32(4, true)).toBe(0x4a0);
    expect(response.subarray(0x20 + 0x50, 0x20 + 0x90)).toEqual(new Uint8Array(64).fill(0x5a));
    expect(request.exitInfo2).toBe(0n);
    expect(sequence()).toBe(2);
    await device.getReport(report());
    expect(sequence()).toBe(4);
  });

  it.each([
    ['version 0', { ...report(), version: 0 }],
    ['a payload of 95 bytes', { ...report(), data: new Uint8Array(95) }],
  ])('refuses %s with EINVAL and asks nobody', async (_, request) => {
    expect(() => device.getReport(request)).toThrow('EINVAL');
    expect(transport.seen).toEqual([]);
  });

  it('sends firmware’s key number and a payload that nobody can read', async () => {
    await device.getReport(report());
    const [message] = transport.seen;
    expect(message![0x3c]).toBe(0);
    expect(message!.subarray(0x60, 0xa0)).not.toEqual(new Uint8Array(64).fill(0x5a));
  });

  it('waits 2 s and sends the same message again while the host is busy', async () => {
    transport.script.push({ exitInfo2: 2n << 32n }, { exitInfo2: 2n << 32n });
    await device.getReport(report());
    expect(transport.slept).toBe(4000);
    expect(transport.seen.length).toBe(3);
    expect(transport.seen[1]).toEqual(transport.seen[0]);
    expect(transport.seen[2]).toEqual(transport.seen[0]);
  });

  it('gives up after 60 s of busy: ETIMEDOUT, and the key is gone', async () => {
    for (let i = 0; i < 40; i++) transport.script.push({ exitInfo2: 2n << 32n });
    const request = report();
    expect(await errnoOf(device.getReport(request))).toBe('ETIMEDOUT');
    expect(request.exitInfo2).toBe(2n << 32n);
    expect(await errnoOf(device.getReport(report()))).toBe('ENOTTY');
    expect(transport.secrets.subarray(0x20, 0x40)).toEqual(new Uint8Array(32));
  });

  it.each([
    ['a status of firmware', 0x16n],
    ['a generic error of the host', 0xffffffffn << 32n],
    ['an error that nobody knows', 77n << 32n],
  ])('%s is EIO, is told, and costs the key', async (_, exitInfo2) => {
    transport.script.push({ exitInfo2 });
    const request = report();
    expect(await errnoOf(device.getReport(request))).toBe('EIO');
    expect(request.exitInfo2).toBe(exitInfo2);
    expect(await errnoOf(device.getReport(report()))).toBe('ENOTTY');
  });

  it.each([
    ['the tag', 0],
    ['the sequence number', 0x20],
    ['the type', 0x34],
    ['the header version', 0x31],
    ['the size', 0x37],
    ['the payload', 0x80],
    ['what is authenticated beside it', 0x5f],
  ])('an answer with another %s is EBADMSG and costs the key', async (_, at) => {
    transport.script.push({
      spoil: (page) => {
        page[at]! ^= 0x10;
      },
    });
    expect(await errnoOf(device.getReport(report()))).toBe('EBADMSG');
    expect(await errnoOf(device.getReport(report()))).toBe('ENOTTY');
  });

  it.each([
    ['as it was', (_: Uint8Array, payload: Uint8Array) => payload, 'none'],
    [
      'with another type',
      (header: Uint8Array, payload: Uint8Array) => {
        header[0x34] = 4;
        return payload;
      },
      'EBADMSG',
    ],
    [
      'with another header version',
      (header: Uint8Array, payload: Uint8Array) => {
        header[0x31] = 2;
        return payload;
      },
      'EBADMSG',
    ],
    [
      'of 4000 bytes, which a report has room for',
      (header: Uint8Array) => {
        header.set([0xa0, 0x0f], 0x36);
        return new Uint8Array(4000);
      },
      'none',
    ],
  ])('an answer that is sealed under the key, %s', async (_, change, errno) => {
    transport.script.push(sealAgain(change));
    expect(await errnoOf(device.getReport(report()))).toBe(errno);
  });

  it('an answer that is longer than what was asked for is EBADMSG', async () => {
    transport.script.push(
      sealAgain((header) => {
        header[0x36] = 65;
        return new Uint8Array(65);
      }),
    );
    const request = { version: 1, data: new Uint8Array(32), exitInfo2: 0n };
    expect(await errnoOf(device.getDerivedKey(request))).toBe('EBADMSG');
  });

  it('an answer with any bit changed, of tag, sequence number, what is authenticated or payload, is EBADMSG', async () => {
    const key = transport.secrets.slice(0x20, 0x40);
    const request = () => device.getDerivedKey({ version: 1, data: new Uint8Array(32), exitInfo2: 0n });
    const refused = async (at: number, bit: number) => {
      transport.script.push({
        spoil: (page) => {
          page[at]! ^= 1 << bit;
        },
      });
      expect(await errnoOf(request()), `byte 0x${at.toString(16)}, bit ${bit}`).toBe('EBADMSG');
      // As if the guest had been asked for the first time: firmware has counted on.
      transport.secrets.set(key, 0x20);
      new DataView(transport.secrets.buffer).setUint32(0xa0, sequence() + 2, true);
    };
    const ranges = [
      [0, 0x10],
      [0x20, 0x28],
      [0x30, 0x60 + 0x40],
    ] as const;
    for (const [from, to] of ranges)
      for (let at = from; at < to; at++) for (let bit = 0; bit < 8; bit++) await refused(at, bit);
    expect(await errnoOf(request())).toBe('none');
  });

  it('an answer that is played back from before is EBADMSG', async () => {
    let old = new Uint8Array(0);
    transport.script.push({
      spoil: (page) => {
        old = page.slice();
      },
    });
    await device.getReport(report());
    transport.script.push({ spoil: (page) => page.set(old) });
    expect(await errnoOf(device.getReport(report()))).toBe('EBADMSG');
  });

  it('ends with EIO where sequence numbers are used up, before anything is sent', async () => {
    new DataView(transport.secrets.buffer).setUint32(0xa0, 0xfffffffe, true);
    expect(await errnoOf(device.getReport(report()))).toBe('EIO');
    expect(transport.seen).toEqual([]);
  });

  it('serves callers at the same time one after the other', async () => {
    const all = await Promise.all([1, 2, 3, 4].map((fill) => device.getReport(report(fill))));
    expect(all.map((response) => response[0x20 + 0x50])).toEqual([1, 2, 3, 4]);
    expect(sequence()).toBe(8);
  });
});

describe('SNP_GET_DERIVED_KEY', () => {
  it('gives the same key for the same request, another for another', async () => {
    const ask = (select: number) => {
      const data = new Uint8Array(32);
      data[8] = select;
      return device.getDerivedKey({ version: 1, data, exitInfo2: 0n });
    };
    const [first, again, other] = [await ask(1), await ask(1), await ask(8)];
    expect(first.length).toBe(64);
    expect(again).toEqual(first);
    expect(other).not.toEqual(first);
  });
});

describe('SNP_GET_EXT_REPORT', () => {
  it('brings certificates along', async () => {
    transport.certificates = Uint8Array.from({ length: 5000 }, (_, i) => i);
    const certificates = new Uint8Array(8192);
    await device.getExtendedReport(extended(certificates));
    expect(certificates.subarray(0, 5000)).toEqual(transport.certificates);
    expect(transport.log).toEqual(['extended 2']);
    expect(transport.sharedBuffers).toBe(2);
  });

  it('says how much room they need, and keeps in step with firmware by a plain request of the same number', async () => {
    transport.certificates = new Uint8Array(5000);
    const request = extended(undefined);
    expect(await errnoOf(device.getExtendedReport(request))).toBe('EIO');
    expect(request.exitInfo2).toBe(1n << 32n);
    expect(request.certificatesLength).toBe(8192);
    expect(transport.log).toEqual(['extended 0', 'plain']);
    expect(sequence()).toBe(2);
    await device.getExtendedReport(extended(new Uint8Array(8192)));
    expect(sequence()).toBe(4);
  });

  it.each([100, 4097, 0x5000])('refuses a buffer of %d bytes with EINVAL', (bytes) => {
    expect(() => device.getExtendedReport(extended(new Uint8Array(bytes)))).toThrow('EINVAL');
  });
});

describe('the device', () => {
  it('is not there without keys', () => {
    transport.secrets.fill(0, 0x20, 0xa0);
    expect(() => new SevGuest(transport)).toThrow('ENODEV');
  });
  it('takes another key than its level’s when told', async () => {
    const other = new SevGuest(transport, { vmpck: 2 });
    const request = report();
    new DataView(request.data.buffer).setUint32(64, 2, true);
    await other.getReport(request);
    expect(transport.seen[0]![0x3c]).toBe(2);
    expect(sequence()).toBe(0);
  });
  it('refuses a key that there is not', () => {
    expect(() => new SevGuest(transport, { vmpck: 4 })).toThrow('EINVAL');
    expect(() => new SevGuest(transport, { vmpck: 3 })).not.toThrow();
  });
});

describe('the configfs tree of reports', () => {
  it('makes a report when its blob is read, once for each change of an input', async () => {
    const entry = new TsmReports(device, 0).mkdir('mine');
    expect([entry.provider, entry.privlevelFloor, entry.generation]).toEqual(['sev_guest\n', '0\n', '0\n']);
    entry.inblob = new Uint8Array(64).fill(9);
    expect(entry.generation).toBe('1\n');
    const first = await entry.outblob();
    expect(first.length).toBe(0x4a0);
    expect(first[0x50]).toBe(9);
    expect(await entry.outblob()).toBe(first);
    expect(transport.seen.length).toBe(1);
    entry.privlevel = '1\n';
    const second = await entry.outblob();
    expect(second[0x30]).toBe(1);
    expect(entry.generation).toBe('2\n');
  });

  it('has the certificates of that report in auxblob', async () => {
    const entry = new TsmReports(device, 0).mkdir('mine');
    entry.inblob = new Uint8Array(64);
    expect((await entry.auxblob()).length).toBe(0);
  });

  it.each([
    ['inblob of 65 bytes', (e: Entry) => void (e.inblob = new Uint8Array(65))],
    ['privlevel 4', (e: Entry) => void (e.privlevel = '4')],
    ['a privlevel that is no number', (e: Entry) => void (e.privlevel = 'high')],
  ])('refuses %s with EINVAL', (_, write) => {
    const entry = new TsmReports(device, 0).mkdir('mine');
    expect(() => write(entry)).toThrow('EINVAL');
    expect(entry.generation).toBe('0\n');
  });

  it('refuses a privilege level below the floor', () => {
    const entry = new TsmReports(device, 2).mkdir('mine');
    expect(() => {
      entry.privlevel = '1';
    }).toThrow('EINVAL');
    entry.privlevel = '2';
    entry.privlevel = '3';
    expect(entry.generation).toBe('2\n');
  });

  it('has entries by name', () => {
    const reports = new TsmReports(device, 0);
    reports.mkdir('a');
    expect(() => reports.mkdir('a')).toThrow('EEXIST');
    expect(() => reports.mkdir('a/b')).toThrow('EINVAL');
    expect(() => reports.mkdir('')).toThrow('EINVAL');
    expect(reports.ls()).toEqual(['a']);
    reports.rmdir('a');
    expect(() => reports.rmdir('a')).toThrow('ENOENT');
  });

  it.each([
    ['whose status is not 0', 0, 0x16, 'EIO'],
    ['with a report that is all of the rest', 4, 4000 - 0x20, 'none'],
    ['with a report that is longer than itself', 4, 4000 - 0x20 + 1, 'EIO'],
  ])('an answer of firmware %s', async (_, at, value, errno) => {
    const entry = new TsmReports(device, 0).mkdir('mine');
    entry.inblob = new Uint8Array(64);
    transport.script.push(
      sealAgain((_header, payload) => {
        new DataView(payload.buffer).setUint32(at, value, true);
        return payload;
      }),
    );
    expect(await errnoOf(entry.outblob())).toBe(errno);
  });

  it('says EINVAL where nothing was written before a blob is read', async () => {
    expect(await errnoOf(new TsmReports(device, 0).mkdir('x').outblob())).toBe('EINVAL');
  });
});

type Entry = ReturnType<TsmReports['mkdir']>;
