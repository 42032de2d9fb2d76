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
    ['busy beside a status of firmware', (2n << 32n) | 0x16n],
    ['too small, for a request that brings no certificates', 1n << 32n],
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
      'with another message version',
      (header: Uint8Array, payload: Uint8Array) => {
        header[0x35] = 2;
        return payload;
      },
      'EBADMSG',
    ],
    [
      'with another header version, at which Linux does not look',
      (header: Uint8Array, payload: Uint8Array) => {
        header[0x31] = 2;
        return payload;
      },
      'none',
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

  it('has no certificates in auxblob where the host has none', async () => {
    const entry = entryWith();
    expect((await entry.auxblob()).length).toBe(0);
    expect((await entry.outblob()).length).toBe(0x4a0);
    expect(transport.log).toEqual(['extended 4']);
  });

  it('has the table of certificates in auxblob, as far as the last of them reaches', async () => {
    const table = tableOf([0x63da758d, 72, 1000], [0xc0b406a4, 1080, 3000]);
    transport.certificates = table;
    const entry = entryWith();
    const auxblob = await entry.auxblob();
    expect(auxblob).toEqual(table);
    expect(auxblob.length).toBe(4080);
    expect((await entry.outblob())[0x50]).toBe(9);
    expect(transport.seen.length).toBe(1);
  });

  // Entries as offset and length; the bytes of auxblob, the warning.
  const NOTHING = 'certificate slots conveyed without size';
  const CUT = 'certificate data truncated';
  it.each<[string, [number, number][], number, string[]]>([
    ['no entry', [], 0, []],
    ['one entry', [[48, 100]], 148, []],
    [
      'the last one not reaching farthest',
      [
        [500, 100],
        [72, 100],
      ],
      600,
      [],
    ],
    ['one that lies in the table itself', [[0, 4]], 4, []],
    ['an entry of no place and no size', [[0, 0]], 0, [NOTHING]],
    ['one that ends with the buffer', [[48, 0x4000 - 48]], 0x4000, []],
    ['one that ends behind the buffer', [[48, 0x4000 - 47]], 0x4000, [CUT]],
    ['one far away', [[0xffff_0000, 0xffff]], 0x4000, [CUT]],
    ['one whose end is beyond 32 bits', [[0xffff_ff00, 0x200]], 0x100, []],
  ])('takes a table of %s', async (_, entries, bytes, warned) => {
    transport.certificates = tableOf(...entries.map(([at, size]) => [1, at, size] as const)).slice(0, 0x4000);
    const entry = entryWith();
    expect((await entry.auxblob()).length).toBe(bytes);
    expect(warnings).toEqual(warned);
  });

  it('takes a table without an end', async () => {
    transport.certificates = new Uint8Array(0x4000).fill(1);
    expect((await entryWith().auxblob()).length).toBe(0x4000);
    expect(warnings).toEqual([CUT]);
  });

  it('has no blob where the table needs more than 16 KiB: EIO, and the guest keeps its key', async () => {
    transport.certificates = tableOf([1, 48, 0x4000]);
    const entry = entryWith();
    expect(await errnoOf(entry.auxblob())).toBe('EIO');
    transport.certificates = new Uint8Array(24);
    expect((await entry.outblob()).length).toBe(0x4a0);
  });

  it.each([
    ['4', 'EINVAL'],
    ['high', 'EINVAL'],
    ['', 'EINVAL'],
    ['\n', 'EINVAL'],
    [' 1', 'EINVAL'],
    ['1 ', 'EINVAL'],
    ['1\n\n', 'EINVAL'],
    ['-1', 'EINVAL'],
    ['08', 'EINVAL'],
    ['0x', 'EINVAL'],
    ['0xg', 'EINVAL'],
    ['010', 'EINVAL'],
    ['1e0', 'EINVAL'],
    ['++1', 'EINVAL'],
    ['4294967295', 'EINVAL'],
    ['4294967296', 'ERANGE'],
    ['4294967296x', 'EINVAL'],
    ['18446744073709551616x', 'ERANGE'],
  ])('refuses privlevel %j with %s', (text, errno) => {
    const entry = new TsmReports(device, 0).mkdir('mine');
    expect(() => {
      entry.privlevel = text;
    }).toThrow(errno);
    expect(entry.generation).toBe('0\n');
  });

  it.each([
    ['1', 1],
    ['1\n', 1],
    ['+1', 1],
    ['01', 1],
    ['003\n', 3],
    ['0x1', 1],
    ['0X3\n', 3],
    ['0x02', 2],
    ['0', 0],
    ['1\0and more', 1],
  ])('takes privlevel %j', async (text, vmpl) => {
    const entry = entryWith();
    entry.privlevel = text;
    expect((await entry.outblob())[0x30]).toBe(vmpl);
  });

  it('asks for VMPL0 where no level was written, whatever the floor is', async () => {
    const low = new SevGuest(transport, { vmpck: 2 });
    const entry = new TsmReports(low, 2).mkdir('mine');
    entry.inblob = new Uint8Array(64);
    expect(await errnoOf(entry.outblob())).toBe('EINVAL');
    entry.privlevel = '2';
    expect((await entry.outblob())[0x30]).toBe(2);
  });

  it('takes no more than 64 bytes: EFBIG, after which nothing is in inblob', async () => {
    const entry = entryWith();
    expect(() => {
      entry.inblob = new Uint8Array(65);
    }).toThrow('EFBIG');
    expect(entry.generation).toBe('2\n');
    expect(await errnoOf(entry.outblob())).toBe('EINVAL');
  });

  it.each([1, 32, 63])('makes no report of %d bytes: EINVAL, and asks nobody', async (bytes) => {
    const entry = new TsmReports(device, 0).mkdir('mine');
    entry.inblob = new Uint8Array(bytes);
    expect(entry.generation).toBe('1\n');
    expect(await errnoOf(entry.outblob())).toBe('EINVAL');
    expect(await errnoOf(entry.auxblob())).toBe('EINVAL');
    expect(transport.seen).toEqual([]);
  });

  it('makes one report for whoever reads its blobs at the same time', async () => {
    const entry = entryWith();
    const [first, , second] = await Promise.all([entry.outblob(), entry.auxblob(), entry.outblob()]);
    expect(second).toBe(first);
    expect(transport.seen.length).toBe(1);
  });

  it('makes the report anew where an input changed while it was made', async () => {
    const entry = entryWith();
    const first = entry.outblob();
    await Promise.resolve();
    entry.inblob = new Uint8Array(64).fill(8);
    expect((await first)[0x50]).toBe(9);
    expect((await entry.outblob())[0x50]).toBe(8);
  });

  it('makes the report anew after a try that failed', async () => {
    const entry = entryWith();
    transport.script.push(
      sealAgain((_header, payload) => {
        new DataView(payload.buffer).setUint32(0, 0x17, true);
        return payload;
      }),
    );
    expect(await errnoOf(entry.outblob())).toBe('ENXIO');
    expect((await entry.outblob()).length).toBe(0x4a0);
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
    ['INVALID_PARAM', 0, 0x16, 'EINVAL'],
    ['INVALID_KEY', 0, 0x27, 'EINVAL'],
    ['another status', 0, 0x17, 'ENXIO'],
    ['a status of all ones', 0, 0xffff_ffff, 'ENXIO'],
    ['with a report that fills the page', 4, 4096 - 0x20, 'none'],
    ['with a report that is longer', 4, 4096 - 0x20 + 1, 'ENOMEM'],
    ['with a report that is longer than anything', 4, 0xffff_ffff, 'ENOMEM'],
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

/** What the driver said to the kernel's log. */
const warnings: string[] = [];
beforeEach(() => void warnings.splice(0));

/** An entry with 64 bytes of inblob. */
function entryWith(): ReturnType<TsmReports['mkdir']> {
  const entry = new TsmReports(device, 0, { warn: (text) => warnings.push(text) }).mkdir('mine');
  entry.inblob = new Uint8Array(64).fill(9);
  return entry;
}

/** A table of certificates, all bytes of which are others: the first word of the GUID, where it is, its bytes. */
function tableOf(...entries: readonly (readonly [number, number, number])[]): Uint8Array {
  const end = Math.max(...entries.map(([, at, size]) => at + size), 0);
  const bytes = Uint8Array.from(
    { length: Math.min(Math.max(end, 24 * entries.length + 24), 0x5000) },
    (_, i) => i % 251,
  );
  bytes.fill(0, 0, 24 * entries.length + 24);
  const view = new DataView(bytes.buffer);
  for (const [i, [guid, at, size]] of entries.entries()) {
    view.setUint32(24 * i, guid);
    view.setUint32(24 * i + 16, at, true);
    view.setUint32(24 * i + 20, size, true);
  }
  return bytes;
}
