import { createHmac } from 'node:crypto';
import fc from 'fast-check';
import { afterEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { CMD, type Guest, hex, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const REPORT = 5;
const TSC_INFO = 17;
const payload = (size = 96): Uint8Array => new Uint8Array(size);
const guestOf = (options: object = {}): Guest => {
  machine = new Machine(options).init();
  return machine.runGuest();
};

describe('GUEST_REQUEST', () => {
  it('checks addresses and pages in the order of the firmware', () => {
    machine = new Machine({ bytes: 32 << 20 });
    const host = machine.page();
    const ask = (context: number, request: number, response: number) =>
      machine.run(CMD.GUEST_REQUEST, [
        [0, 8, context],
        [8, 8, request],
        [16, 8, response],
      ]);
    expect(ask(host + 1, host, host)).toBe(0x16);
    expect(ask(host, host, host)).toBe(1);
    machine.init();
    const { base } = machine.rmp;
    expect(ask(host, base, host)).toBe(0x16);
    expect(ask(host, host, base)).toBe(0x16);
    expect(ask(host, host, host)).toBe(0x10);
    const context = machine.startGuest();
    expect(ask(context, host, host)).toBe(0x1a);
    const large = machine.page(9);
    machine.rmpupdate(large, { immutable: true, large: true });
    expect(ask(context, host, large)).toBe(0x19);
    const response = machine.firmwarePage();
    expect(ask(context, large, response)).toBe(0x19);
    expect(ask(context, host, response)).toBe(2);
    machine.launchFinish(context);
    expect(ask(context, host + 0xfa1, response)).toBe(0x16);
    expect(ask(context, host + 0xfff, response)).toBe(0x16);
    expect(ask(context, 1 << 30, response)).toBe(9);
    expect(ask(context, host, response)).toBe(0x16);
  });

  it('believes no entry behind the RMP', () => {
    machine = new Machine().init();
    const { context, response } = machine.runGuest();
    // Of the first frame behind memory there is none: what lies there would say 2 MiB.
    machine.memory.store64(machine.rmp.end, 3n);
    const fields = [
      [0, 8, context],
      [8, 8, machine.memory.frameCount * 4096],
      [16, 8, response],
    ] as const;
    expect(machine.run(CMD.GUEST_REQUEST, fields)).toBe(9);
  });

  it.each([
    // what, where in the header, value, status
    ['header version 2', 0x31, 2, 0x16],
    ['header size 0x61', 0x32, 0x61, 0x16],
    ['algorithm 2', 0x30, 2, 0x16],
    ['size 0', 0x36, 0, 0x16],
    ['a size that is no multiple of 16', 0x36, 97, 0x16],
    ['a size beyond the page', 0x37, 0x10, 0x16],
    ['VMPCK 4', 0x3c, 4, 0x16],
    ['another VMPCK', 0x3c, 1, 0x0b],
    ['another size', 0x36, 112, 0x0b],
    ['another type', 0x34, 3, 0x0b],
    ['another version', 0x35, 2, 0x0b],
  ] as const)('refuses a message with %s', (_what, at, value, status) => {
    const guest = guestOf();
    const message = guest.message(REPORT, payload());
    message[at] = value;
    expect(guest.send(message)).toBe(status);
  });

  it('refuses every single-bit change of a message, and no counter moves', () => {
    const guest = guestOf();
    const message = guest.message(TSC_INFO, payload(128));
    for (let bit = 0; bit < message.length * 8; bit++) {
      const changed = message.slice();
      changed[bit >> 3]! ^= 1 << (bit & 7);
      expect([0x0b, 0x16]).toContain(guest.send(changed));
    }
    expect(guest.send(message)).toBe(0);
  });

  it('wants sequence numbers one by one, and answers with the next', () => {
    const guest = guestOf();
    const at = (sequence: bigint) => guest.send(guest.message(REPORT, payload(), { sequence }));
    expect(at(0n)).toBe(0x1d);
    expect(at(2n)).toBe(0x1d);
    const answer = guest.ask(REPORT, payload());
    expect(new DataView(answer.header.buffer).getBigUint64(0x20, true)).toBe(2n);
    expect(at(1n)).toBe(0x1d);
    expect(at(2n)).toBe(0x1d);
    expect(at(5n)).toBe(0x1d);
    expect(at(3n)).toBe(0);
    expect(at(3n)).toBe(0x1d);
    expect(at(0xffff_ffff_ffff_ffffn)).toBe(0x1d);
  });

  it('counts for each VMPCK', () => {
    const guest = guestOf();
    for (const vmpck of [0, 1, 2, 3]) {
      expect(guest.report({ vmpck, vmpl: 3 }).status).toBe(0);
      expect(guest.sequences[vmpck]).toBe(2n);
    }
    expect(guest.report({ vmpck: 2, vmpl: 3 }).status).toBe(0);
  });

  it('answers under the same key with type + 1, version 1, and zero in what is reserved', () => {
    const guest = guestOf();
    const { header } = guest.ask(REPORT, payload(), { vmpck: 1 });
    expect(hex(header.subarray(0x10, 0x20))).toBe('0'.repeat(32));
    expect(hex(header.subarray(0x20, 0x60))).toBe(
      `${'0200000000000000'}${'0'.repeat(16)}01016000${'0601'}${'c004'}${'00000000'}01${'0'.repeat(70)}`,
    );
  });

  it.each([1, 2])('answers KEY_REQ of version %d with that version', (version) => {
    const guest = guestOf({ generation: 'turin' });
    const { header } = guest.ask(3, payload(version === 2 ? 48 : 32), { version });
    expect([header[0x34], header[0x35]]).toEqual([4, version]);
  });

  it.each([
    ['type 0', 0, 1, 96, 0x16],
    ['type 2, an answer', 2, 1, 96, 0x16],
    ['type 19', 19, 1, 96, 0x16],
    ['version 0', REPORT, 0, 96, 0x16],
    ['version 2 of REPORT_REQ', REPORT, 2, 96, 0x16],
    ['version 2 of KEY_REQ before ABI 1.58', 3, 2, 48, 0x16],
    ['less payload than the message has', REPORT, 1, 80, 0x16],
    ['more payload than the message has', REPORT, 1, 112, 0],
  ] as const)('of %s answers', (_what, type, version, size, status) => {
    const guest = guestOf();
    expect(guest.send(guest.message(type, payload(size), { version }))).toBe(status);
    expect(guest.send(guest.message(REPORT, payload(), { sequence: status === 0 ? 3n : 1n }))).toBe(0);
  });

  it('of version 2 is KEY_REQ alone, also from ABI 1.58 on', () => {
    const guest = guestOf({ generation: 'turin' });
    expect(guest.send(guest.message(REPORT, payload(), { version: 2 }))).toBe(0x16);
  });

  it.each([
    ['1.57', 57, 0x16],
    ['1.58', 58, 0],
  ])('of KEY_REQ has version 2 from ABI 1.58 on: %s', (_, minor, status) => {
    const guest = guestOf({ firmware: { major: 1, minor, build: 1 } });
    expect(guest.send(guest.message(3, payload(48), { version: 2 }))).toBe(status);
  });

  it('of KEY_REQ has version 2 with ABI 2.0', () => {
    const guest = guestOf({ firmware: { major: 2, minor: 0, build: 1 } });
    expect(guest.send(guest.message(3, payload(48), { version: 2 }))).toBe(0);
  });

  it('takes a message up to the end of its page', () => {
    const guest = guestOf();
    expect(guest.send(guest.message(TSC_INFO, payload(4000)))).toBe(0);
  });

  it('writes nothing across the end of the response page, and no counter moves', () => {
    const guest = guestOf();
    machine.memory.write(guest.request, guest.message(REPORT, payload()));
    const ask = (response: number) =>
      machine.run(CMD.GUEST_REQUEST, [
        [0, 8, guest.context],
        [8, 8, guest.request],
        [16, 8, response],
      ]);
    expect(ask(guest.response + 0x1000 - 0x60 - 0x4c0 + 1)).toBe(0x16);
    expect(ask(guest.response + 0x1000 - 0x60 - 0x4c0)).toBe(0);
  });

  it('keeps keys, payloads and reports from what a host reads', () => {
    const guest = guestOf();
    const data = new Uint8Array(64).map((_, i) => 0xa0 + (i % 16));
    const { report } = guest.report({ data });
    const seen = Buffer.from(machine.read(0 as Spa, machine.memory.frameCount * 4096));
    expect(seen.includes(Buffer.from(data.subarray(0, 16)))).toBe(false);
    expect(seen.includes(Buffer.from(report.subarray(0x140, 0x160)))).toBe(false);
    for (const n of [0, 1, 2, 3]) expect(seen.includes(Buffer.from(guest.vmpck(n)))).toBe(false);
    // The same search finds what a host may see.
    expect(
      seen.includes(Buffer.from(guest.message(REPORT, payload(), { sequence: 1n }).subarray(0x30, 0x40))),
    ).toBe(true);
  });

  it('survives any bytes', () => {
    const guest = guestOf();
    fc.assert(
      fc.property(fc.uint8Array({ minLength: 0, maxLength: 300 }), fc.boolean(), (bytes, withHeader) => {
        const message = bytes.slice();
        if (withHeader && message.length >= 0x60)
          message.set(guest.message(REPORT, payload()).subarray(0x30, 0x3d), 0x30);
        expect([0x0b, 0x16]).toContain(guest.send(message));
      }),
      { numRuns: 300 },
    );
    expect(guest.report().status).toBe(0);
  });
});

describe('REPORT_REQ', () => {
  const ask = (guest: Guest, change: (request: DataView) => void, vmpck = 0): number => {
    const request = new DataView(new ArrayBuffer(96));
    change(request);
    const answer = guest.ask(REPORT, new Uint8Array(request.buffer), { vmpck });
    expect(answer.status).toBe(0);
    return new DataView(answer.payload.buffer).getUint32(0, true);
  };

  it.each([
    ['nothing', () => {}, 0, 0],
    ['the first reserved byte', (r: DataView) => r.setUint8(0x48, 1), 0, 0x16],
    ['the last reserved byte', (r: DataView) => r.setUint8(0x5f, 1), 0, 0x16],
    ['reserved bits of the key selection', (r: DataView) => r.setUint8(0x44, 4), 0, 0x16],
    ['key selection 3', (r: DataView) => r.setUint8(0x44, 3), 0, 0x27],
    ['a VLEK that is not there, and VMPL 0 by VMPCK 1', (r: DataView) => r.setUint8(0x44, 2), 1, 0x27],
    ['VMPL 0 by VMPCK 1', () => {}, 1, 0x16],
    ['VMPL 1 by VMPCK 1', (r: DataView) => r.setUint8(0x40, 1), 1, 0],
    ['VMPL 3 by VMPCK 1', (r: DataView) => r.setUint8(0x40, 3), 1, 0],
    ['VMPL 4', (r: DataView) => r.setUint8(0x40, 4), 0, 0x16],
  ] as const)('with %s says so in an answer that the guest alone reads', (_what, change, vmpck, status) => {
    expect(ask(guestOf(), change, vmpck)).toBe(status);
  });

  it('tells what the guest is', () => {
    machine = new Machine().init();
    const guest = machine.runGuest({ policy: 0xb0000n });
    const { report } = guest.report({ vmpl: 2 });
    const view = new DataView(report.buffer, report.byteOffset);
    expect(view.getUint32(0, true)).toBe(2);
    expect(view.getBigUint64(8, true)).toBe(0xb0000n);
    expect(view.getUint32(0x30, true)).toBe(2);
    expect(view.getUint32(0x34, true)).toBe(1);
    expect(view.getBigUint64(0x40, true)).toBe(1n);
    expect(view.getUint32(0x48, true)).toBe(0);
    expect(report.subarray(0x140, 0x160).some((byte) => byte !== 0)).toBe(true);
    expect(hex(report.subarray(0x160, 0x180))).toBe('ff'.repeat(32));
    expect(hex(report.subarray(0x188, 0x1a0))).toBe('0'.repeat(48));
    expect(hex(report.subarray(0x1a0, 0x1e0))).toBe(hex(machine.chip.chipId));
    expect(report.subarray(0x1f8, 0x2a0).every((byte) => byte === 0)).toBe(true);
    for (const [from, to] of [
      [0x2a0 + 48, 0x2e8],
      [0x2e8 + 48, 0x4a0],
    ] as const)
      expect(report.subarray(from, to).every((byte) => byte === 0)).toBe(true);
  });

  it.each([true, false])('says whether the machine has SMT on: %s', (smt) => {
    const { report } = guestOf({ smt }).report();
    expect((report[0x40]! & 1) === 1).toBe(smt);
  });

  it('of Turin has version 5, ECC and alias check in the platform information, and a CPUID signature', () => {
    const guest = guestOf({ generation: 'turin' });
    const { report } = guest.report();
    expect(report[0]).toBe(5);
    expect(report[0x40]).toBe(1 | 4 | 32);
    expect([...report.subarray(0x188, 0x18b)]).toEqual([26, 2, 1]);
    expect(report.subarray(0x1a8, 0x1e0).every((byte) => byte === 0)).toBe(true);
  });

  it.each([
    [1, 55, 2],
    [1, 56, 3],
    [1, 57, 3],
    [1, 58, 5],
    [2, 0, 5],
  ])('of firmware %d.%d has version %d', (major, minor, version) => {
    const guest = guestOf({ firmware: { major, minor, build: 1 } });
    expect(guest.report().report[0]).toBe(version);
  });

  it('repeats byte for byte with a seed', () => {
    const run = (): string => {
      machine = new Machine({ signatures: 'rfc6979' }).init();
      const report = hex(machine.runGuest().report().report);
      machine.close();
      return report;
    };
    expect(run()).toBe(run());
  });
});

describe('KEY_REQ', () => {
  interface Asked {
    root?: number;
    reserved?: number;
    fields?: number;
    vmpl?: number;
    svn?: number;
    tcb?: bigint;
    vmpck?: number;
    version?: number;
    vector?: bigint;
  }
  const derive = (guest: Guest, asked: Asked = {}): { status: number; key: string } => {
    const version = asked.version ?? 1;
    const request = new DataView(new ArrayBuffer(version === 2 ? 48 : 32));
    request.setUint32(0, asked.root ?? 0, true);
    request.setUint32(4, asked.reserved ?? 0, true);
    request.setUint32(8, asked.fields ?? 0, true);
    request.setUint32(16, asked.vmpl ?? 0, true);
    request.setUint32(20, asked.svn ?? 0, true);
    request.setBigUint64(24, asked.tcb ?? 0n, true);
    if (version === 2) request.setBigUint64(32, asked.vector ?? 0n, true);
    const answer = guest.ask(3, new Uint8Array(request.buffer), { vmpck: asked.vmpck ?? 0, version });
    expect(answer.payload).toHaveLength(64);
    return { status: answer.payload[0]!, key: hex(answer.payload.subarray(32)) };
  };

  it.each([
    ['nothing special', {}, 0],
    ['the VMRK', { root: 1 }, 0],
    ['reserved bits of the root key', { root: 8 }, 0x16],
    ['the reserved word', { reserved: 1 }, 0x16],
    ['key selection 3', { root: 6 }, 0x27],
    ['key selection 3 with the VMRK', { root: 7 }, 0],
    ['a VLEK that is not there', { root: 4 }, 0x27],
    ['the VCEK', { root: 2 }, 0],
    ['VMPL 0 by VMPCK 1', { vmpck: 1 }, 0x16],
    ['VMPL 1 by VMPCK 1', { vmpck: 1, vmpl: 1 }, 0],
    ['field 6 in version 1', { fields: 64 }, 0x16],
    ['an SVN above that of the ID block, not mixed in', { svn: 1 }, 0],
    ['the SVN of the ID block', { fields: 16, svn: 0 }, 0],
    ['an SVN above that of the ID block', { fields: 16, svn: 1 }, 0x16],
    ['a TCB above the committed, not mixed in', { tcb: 0xffn }, 0],
    ['a TCB with one component above the committed', { fields: 32, tcb: 5n }, 0x16],
    ['a TCB with a reserved byte', { fields: 32, tcb: 0x10000n }, 0x16],
    ['an older TCB', { fields: 32, tcb: 3n }, 0],
  ] as const)('with %s answers', (_what, asked, status) => {
    const { status: got, key } = derive(guestOf(), asked);
    expect(got).toBe(status);
    expect(/^0+$/.test(key)).toBe(status !== 0);
  });

  it('gives the same key for the same question, and another one for every other', () => {
    const guest = guestOf();
    const questions: Asked[] = [
      {},
      { root: 1 },
      { vmpl: 1 },
      { fields: 1 },
      { fields: 2 },
      { fields: 4 },
      { fields: 8 },
      { fields: 16 },
      { fields: 32 },
      { fields: 32, tcb: 3n },
    ];
    const keys = questions.map((asked) => derive(guest, asked).key);
    expect(new Set(keys).size).toBe(questions.length);
    expect(questions.map((asked) => derive(guest, asked).key)).toEqual(keys);
  });

  it('gives another guest with the same host data the same chip key, and another VMRK key', () => {
    const guest = guestOf();
    const other = machine.runGuest({ asid: 2 });
    const third = machine.runGuest({ asid: 3, finish: [[0x20, 1, 1]] });
    expect(derive(other).key).toBe(derive(guest).key);
    expect(derive(third).key).not.toBe(derive(guest).key);
    expect(derive(other, { root: 1 }).key).not.toBe(derive(guest, { root: 1 }).key);
  });

  it('mixes by the KDF of SP 800-108 what was selected and the host data, for a guest without an ID block', () => {
    machine = new Machine().init();
    const guest = machine.runGuest({ finish: [[0x20, 1, 0x77]] });
    const exporting = new Uint8Array(16);
    new DataView(exporting.buffer).setBigUint64(0, BigInt(guest.context), true);
    exporting[8] = 1;
    const vmrk = guest.ask(7, exporting).payload.subarray(0x20 + 208, 0x20 + 240);
    const mix = new Uint8Array(200);
    mix[0] = 1;
    mix[120] = 0x77;
    const key = createHmac('sha256', vmrk)
      .update(Uint8Array.of(1, 0, 0, 0))
      .update('gmsg-keyreq\0')
      .update(mix)
      .update(Uint8Array.of(0, 1, 0, 0))
      .digest('hex');
    expect(derive(guest, { root: 1 })).toEqual({ status: 0, key });
  });

  it('refuses the key of a masked chip', () => {
    const guest = guestOf();
    machine.run(CMD.CONFIG, [[8, 4, 2]]);
    expect(derive(guest).status).toBe(0x27);
    expect(derive(guest, { root: 1 }).status).toBe(0);
  });

  it('has a version 2 from ABI 1.58 on, with a launch mitigation vector that is 0', () => {
    const guest = guestOf({ generation: 'turin' });
    expect(derive(guest, { version: 2, fields: 64 }).status).toBe(0);
    expect(derive(guest, { version: 2, fields: 64, vector: 1n }).status).toBe(0x16);
    expect(derive(guest, { version: 2, vector: 1n }).status).toBe(0);
    expect(derive(guest, { version: 2, fields: 128 }).status).toBe(0x16);
  });
});

describe('TSC_INFO_REQ', () => {
  it('tells scale and factor', () => {
    machine = new Machine().init();
    const context = machine.createContext();
    machine.run(CMD.LAUNCH_START, [
      [0, 8, context],
      [8, 8, 0x30000n],
      [0x1c, 4, 2_000_000],
    ]);
    machine.activate(context, 1);
    const guest = machine.finishGuest(context);
    const answer = guest.ask(TSC_INFO, payload(128)).payload;
    const view = new DataView(answer.buffer);
    expect(answer).toHaveLength(128);
    expect(view.getUint32(0, true)).toBe(0);
    // 2,000,000 / 99,800 in 8.32, rounded up.
    expect(view.getBigUint64(8, true)).toBe((20n << 32n) + (4000n * 2n ** 32n + 99_799n) / 99_800n);
    expect(view.getBigUint64(16, true)).toBe(0n);
    expect(view.getUint32(24, true)).toBe(200);
  });

  it('refuses what is not zero', () => {
    const guest = guestOf();
    const request = payload(128);
    request[127] = 1;
    expect(guest.ask(TSC_INFO, request).payload[0]).toBe(0x16);
  });
});
