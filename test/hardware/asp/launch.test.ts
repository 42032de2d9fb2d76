import { afterEach, describe, expect, it, vi } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { CMD, type Field, hex, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const NORMAL = 1;

describe('LAUNCH_START', () => {
  it.each([
    // what, fields of the command buffer, status
    ['bits 11:0 of the context address', [[0, 8, 0x1001]], 0x16],
    ['reserved flags', [[0x18, 4, 4]], 0x16],
    ['bits 11:0 of the migration agent address', [[0x10, 8, 1]], 0x16],
    ['the RMP as context', [[0, 8, 'rmp']], 0x16],
    ['a page of the host as context', [[0, 8, 'host']], 0x10],
    ['an address beyond memory', [[0, 8, 1n << 48n]], 0x10],
    [
      'a host page as migration agent',
      [
        [0x10, 8, 'host'],
        [0x18, 4, 1],
      ],
      0x10,
    ],
    ['policy bit 17 clear', [[8, 8, 0x10000n]], 7],
    ['SMT forbidden on a machine with SMT', [[8, 8, 0x20000n]], 7],
    ['an ABI major above the firmware', [[8, 8, 0x30200n]], 7],
    ['an ABI minor above the firmware', [[8, 8, 0x30138n]], 7],
    ['the ABI minor of the firmware', [[8, 8, 0x30137n]], 0],
    ['policy bit 21 on Milan', [[8, 8, 0x230000n]], 7],
    ['policy bit 22 on Milan', [[8, 8, 0x430000n]], 7],
    ['policy bit 25 before ABI 1.58', [[8, 8, 0x2030000n]], 7],
    ['policy bit 26', [[8, 8, 0x4030000n]], 7],
    ['policy bit 63', [[8, 8, 0x8000000000030000n]], 7],
    ['debugging, migration and a single socket allowed', [[8, 8, 0x1f0000n]], 0],
    ['all as it should be', [], 0],
  ] as [string, [number, 1 | 2 | 4 | 8, number | bigint | string][], number][])(
    'with %s answers %#x',
    (_what, fields, status) => {
      machine = new Machine().init();
      const context = machine.createContext();
      const host = machine.page();
      const resolved = fields.map(([offset, size, value]): Field => {
        const number = value === 'rmp' ? machine.rmp.base : value === 'host' ? host : (value as number);
        return [offset, size, number];
      });
      expect(machine.run(CMD.LAUNCH_START, [[0, 8, context], [8, 8, 0x30000n], ...resolved])).toBe(status);
    },
  );

  it('needs an initialised platform', () => {
    machine = new Machine();
    expect(machine.launchStart(machine.page())).toBe(1);
  });

  it('is done once', () => {
    machine = new Machine().init();
    const context = machine.createContext();
    expect(machine.launchStart(context)).toBe(0);
    expect(machine.launchStart(context)).toBe(2);
  });

  it('allows SMT to be forbidden on a machine without', () => {
    machine = new Machine({ smt: false }).init();
    expect(machine.launchStart(machine.createContext(), 0x20000n)).toBe(0);
  });

  it.each([
    // generation, policy bit, flags of SNP_INIT_EX, status
    ['genoa', 21n, 1, 0],
    ['genoa', 22n, 1, 0],
    ['genoa', 23n, 1, 7],
    ['genoa', 23n, 5, 0],
    ['genoa', 24n, 1, 7],
    ['genoa', 25n, 1, 7],
    ['turin', 24n, 1, 7],
    ['turin', 24n, 9, 0],
    ['turin', 25n, 1, 0],
  ] as const)(
    'on %s with policy bit %d after INIT_EX with flags %d answers %d',
    (generation, bit, flags, status) => {
      machine = new Machine({ generation });
      expect(machine.run(CMD.INIT_EX, [[0, 4, flags]])).toBe(0);
      expect(machine.launchStart(machine.createContext(), 0x30000n | (1n << bit))).toBe(status);
    },
  );

  it.each([
    ['128', 0x30000n, 32],
    ['256', 0x430000n, 64],
  ])('gives the memory controller a key for XTS of AES-%s by the policy', (_bits, policy, size) => {
    machine = new Machine({ generation: 'genoa' }).init();
    const addKey = vi.spyOn(machine.memory.encryption, 'addKey');
    expect(machine.launchStart(machine.createContext(), policy)).toBe(0);
    expect(addKey.mock.calls.map(([key]) => key.length)).toEqual([size]);
  });

  it('binds a guest to a migration agent that is itself not bound, if the policy says so', () => {
    machine = new Machine().init();
    const [agent, guest, third] = [machine.createContext(), machine.createContext(), machine.createContext()];
    machine.launchStart(agent);
    const bind = (context: Spa, to: Spa, policy: bigint) =>
      machine.run(CMD.LAUNCH_START, [
        [0, 8, context],
        [8, 8, policy],
        [16, 8, to],
        [0x18, 4, 1],
      ]);
    expect(bind(guest, agent, 0x30000n)).toBe(7);
    expect(bind(guest, agent, 0x70000n)).toBe(0);
    expect(bind(third, guest, 0x70000n)).toBe(7);
    expect(bind(third, agent, 0x170000n)).toBe(7);
    const onOneSocket = machine.createContext();
    machine.launchStart(onOneSocket, 0x130000n);
    expect(bind(third, onOneSocket, 0x170000n)).toBe(0);
  });
});

describe('LAUNCH_UPDATE', () => {
  /** A command buffer in which everything from row N on is wrong answers the status of row N. */
  it('checks in the order of the firmware', () => {
    machine = new Machine().init();
    const context = machine.startGuest();
    const other = machine.createContext();
    machine.launchStart(other);
    const foreign = machine.preGuestPage(0x1000, undefined, 2);
    const mine = machine.preGuestPage(0x1000);
    const host = machine.page();
    const update = (gctx: Spa, page: Spa, flags: number, extra: Field[] = []) =>
      machine.run(CMD.LAUNCH_UPDATE, [[0, 8, gctx], [8, 4, flags], [16, 8, page], ...extra]);
    expect(update((context + 1) as Spa, host, 0)).toBe(0x16);
    expect(update(context, (host + 8) as Spa, 0)).toBe(0x16);
    expect(update(host, host, 0x20)).toBe(0x16);
    expect(update(host, host, 0, [[12, 4, 1]])).toBe(0x16);
    expect(update(host, host, 0, [[24, 1, 1]])).toBe(0x16);
    expect(update(host, host, 0, [[28, 4, 1]])).toBe(0x16);
    expect(update(host, host, 1)).toBe(0x10);
    expect(update(other, machine.rmp.base, 1)).toBe(0x16);
    expect(update(other, host, 1)).toBe(0x1a);
    expect(update(other, (1 << 30) as Spa, 1)).toBe(0x1a);
    expect(update(other, foreign, 1)).toBe(0x19);
    expect(update(other, foreign, 0)).toBe(0x16);
    expect(update(other, foreign, 7 << 1)).toBe(0x16);
    const unstarted = machine.createContext();
    expect(update(unstarted, foreign, NORMAL << 1)).toBe(2);
    expect(update(other, foreign, NORMAL << 1)).toBe(8);
    expect(update(context, foreign, NORMAL << 1)).toBe(0x1c);
    expect(update(context, mine, NORMAL << 1)).toBe(0);
    expect(machine.stateOf(mine)).toBe('guest-valid');
    expect(update(context, mine, NORMAL << 1)).toBe(0x1a);
  });

  it('knows where the RMP ends, and believes no entry behind it', () => {
    machine = new Machine().init();
    const context = machine.startGuest();
    const { rmp, memory } = machine;
    const update = (page: number): number => {
      const command = machine.page();
      memory.store64(command, BigInt(context));
      memory.store32((command + 8) as Spa, 2);
      memory.store64((command + 16) as Spa, BigInt(page));
      return machine.asp.execute(CMD.LAUNCH_UPDATE, command);
    };
    // Frame 4096 is none: its entry would be the first of what lies behind the table.
    memory.store64(rmp.end, 5n | (1n << 51n));
    memory.store64((rmp.end + 8) as Spa, 0x1fn);
    const slot = rmp.base + 16384 + memory.frameCount * 16;
    expect(slot).toBe(rmp.end);
    expect(update(memory.frameCount * 4096)).toBe(0x1a);
    machine.rmpupdate(rmp.end, { gpa: 0x1000, asid: 1, immutable: true });
    expect(update(rmp.end)).toBe(0);
  });

  it('needs an initialised platform', () => {
    machine = new Machine();
    expect(machine.launchUpdate(machine.page(), machine.page(), NORMAL)).toBe(1);
  });

  it('wants every page of a migration image to be marked as such', () => {
    machine = new Machine().init();
    const context = machine.createContext();
    machine.run(CMD.LAUNCH_START, [
      [0, 8, context],
      [8, 8, 0x30000n],
      [0x18, 4, 2],
    ]);
    machine.activate(context, 1);
    const page = machine.preGuestPage(0x1000);
    expect(machine.launchUpdate(context, page, NORMAL)).toBe(0x16);
    expect(machine.launchUpdate(context, page, NORMAL, { imi: true })).toBe(0);
    expect(machine.launchFinish(context)).toBe(2);
  });

  it('leaves the plain text to the guest, and XTS of it to the host', () => {
    machine = new Machine().init();
    const context = machine.startGuest();
    const content = new Uint8Array(4096).map((_, i) => i);
    const page = machine.preGuestPage(0x5000, content);
    expect(machine.launchUpdate(context, page, NORMAL, { permissions: 0x1f030100 | 0 })).toBe(0);
    expect(hex(machine.readAs(1, page, 4096))).toBe(hex(content));
    expect(hex(machine.read(page, 4096))).not.toBe(hex(content));
    expect(machine.rmp.entry((page / 4096) as never)).toMatchObject({
      validated: true,
      immutable: false,
      vmsa: false,
      asid: 1,
      gpa: 0x5000,
      permissions: 0x1f03011f,
    });
  });

  it('zeroes a ZERO page', () => {
    machine = new Machine().init();
    const context = machine.startGuest();
    const page = machine.preGuestPage(0x5000, new Uint8Array(4096).fill(7));
    expect(machine.launchUpdate(context, page, 3)).toBe(0);
    expect(machine.readAs(1, page, 4096).every((byte) => byte === 0)).toBe(true);
  });

  it('marks a VMSA, and measures it as if its TSC fields were zero', () => {
    machine = new Machine().init();
    const measurementOf = (vmsa: Uint8Array, asid: number): string => {
      const context = machine.startGuest({ asid });
      const page = machine.preGuestPage(0xfffffffff000, vmsa, asid);
      expect(machine.launchUpdate(context, page, 2)).toBe(0);
      expect(machine.rmp.entry((page / 4096) as never).vmsa).toBe(true);
      expect(hex(machine.readAs(asid, page, 4096))).toBe(hex(vmsa));
      return hex(machine.finishGuest(context, { asid }).report().report.subarray(0x90, 0xc0));
    };
    const plain = measurementOf(new Uint8Array(4096), 1);
    expect(measurementOf(new Uint8Array(4096).fill(0xff, 0x2f0, 0x300), 2)).toBe(plain);
    expect(measurementOf(new Uint8Array(4096).fill(1, 0x300, 0x301), 3)).not.toBe(plain);
    expect(measurementOf(new Uint8Array(4096).fill(1, 0x2ef, 0x2f0), 4)).not.toBe(plain);
  });

  it('sets the TSC fields of a VMSA with secure TSC', () => {
    machine = new Machine().init();
    const context = machine.createContext();
    machine.run(CMD.LAUNCH_START, [
      [0, 8, context],
      [8, 8, 0x30000n],
      [0x1c, 4, 2_495_000],
    ]);
    machine.activate(context, 1);
    const vmsa = new Uint8Array(4096).fill(0xff, 0x2f8, 0x300);
    vmsa[0x3b1] = 2;
    const page = machine.preGuestPage(0xfffffffff000, vmsa);
    expect(machine.launchUpdate(context, page, 2)).toBe(0);
    // 2,495,000 kHz of a clock of 99,800 kHz.
    expect(hex(machine.readAs(1, page, 4096).subarray(0x2f0, 0x300))).toBe(
      `0000000019000000${'0'.repeat(16)}`,
    );
  });

  it('tells a migration image by its secrets page that it is one', () => {
    machine = new Machine().init();
    const context = machine.createContext();
    machine.run(CMD.LAUNCH_START, [
      [0, 8, context],
      [8, 8, 0x30000n],
      [0x18, 4, 2],
    ]);
    machine.activate(context, 1);
    const page = machine.preGuestPage(0x2000);
    expect(machine.launchUpdate(context, page, 5, { imi: true })).toBe(0);
    expect(machine.readAs(1, page, 8)[4]).toBe(1);
  });

  it('fills a secrets page: version 3, the chip, GOSVW, four keys, the TSC factor', () => {
    machine = new Machine().init();
    const context = machine.createContext();
    machine.run(CMD.LAUNCH_START, [
      [0, 8, context],
      [8, 8, 0x30000n],
      [0x20, 8, 0x1122334455667788n],
    ]);
    machine.activate(context, 1);
    const page = machine.preGuestPage(0x2000, new Uint8Array(4096).fill(0xee));
    expect(machine.launchUpdate(context, page, 5)).toBe(0);
    const secrets = machine.readAs(1, page, 4096);
    const view = new DataView(secrets.buffer);
    expect([0, 4, 8, 12].map((at) => view.getUint32(at, true))).toEqual([3, 0, 0xa00f11, 0]);
    expect(view.getBigUint64(0x10, true)).toBe(0x1122334455667788n);
    const keys = [0, 1, 2, 3].map((n) => hex(secrets.subarray(0x20 + n * 32, 0x40 + n * 32)));
    expect(new Set(keys).size).toBe(4);
    expect(secrets.subarray(0xa0, 0x160).every((byte) => byte === 0)).toBe(true);
    expect(view.getUint32(0x160, true)).toBe(200);
    expect(secrets.subarray(0x164).every((byte) => byte === 0)).toBe(true);
    for (const key of keys) expect(hex(machine.read(page, 4096))).not.toContain(key);
  });

  it('takes 2 MiB as 512 pages of 4 KiB', () => {
    machine = new Machine({ bytes: 32 << 20 }).init();
    const content = new Uint8Array(2 << 20).map((_, i) => (i >> 12) ^ i);
    const digests = [true, false].map((large, i) => {
      const asid = i + 1;
      const context = machine.startGuest({ asid });
      const region = machine.page(9);
      machine.memory.write(region, content);
      if (large) {
        machine.rmpupdate(region, { gpa: 0x200000, asid, immutable: true, large });
        expect(machine.launchUpdate(context, region, NORMAL, { large })).toBe(0);
      } else {
        for (let page = 0; page < 512; page++) {
          const at = (region + page * 4096) as Spa;
          machine.rmpupdate(at, { gpa: 0x200000 + page * 4096, asid, immutable: true });
          expect(machine.launchUpdate(context, at, NORMAL)).toBe(0);
        }
      }
      expect(hex(machine.readAs(asid, region, 2 << 20)) === hex(content)).toBe(true);
      expect(machine.stateOf((region + 511 * 4096) as Spa)).toBe('guest-valid');
      machine.launchFinish(context);
      return machine.run(CMD.GUEST_STATUS, [
        [0, 8, context],
        [8, 8, machine.firmwarePage()],
      ]);
    });
    expect(digests).toEqual([0, 0]);
  });

  it.each([2, 5, 6])('refuses 2 MiB for page type %d', (type) => {
    machine = new Machine({ bytes: 32 << 20 }).init();
    const context = machine.startGuest();
    const region = machine.page(9);
    machine.rmpupdate(region, { gpa: 0, asid: 1, immutable: true, large: true });
    expect(machine.launchUpdate(context, region, type, { large: true })).toBe(0x19);
    expect(machine.launchUpdate(context, region, NORMAL)).toBe(0x19);
    // Inside of a 2 MiB page firmware sees entries that say assigned alone.
    expect(machine.launchUpdate(context, (region + 4096) as Spa, NORMAL)).toBe(0x1a);
    expect(machine.launchUpdate(context, (region + 4096) as Spa, NORMAL, { large: true })).toBe(0x1a);
    expect(machine.stateOf(region)).toBe('pre-guest');
  });
});

describe('LAUNCH_FINISH', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine();
    expect(machine.launchFinish(machine.page())).toBe(1);
    machine.init();
    const context = machine.createContext();
    expect(machine.launchFinish((context + 1) as Spa)).toBe(0x16);
    expect(machine.launchFinish(machine.page(), [[0x18, 1, 8]])).toBe(0x16);
    expect(machine.launchFinish(machine.page())).toBe(0x10);
    expect(machine.launchFinish(context)).toBe(2);
    machine.launchStart(context);
    expect(machine.launchFinish(context)).toBe(8);
    machine.activate(context, 1);
    expect(machine.launchFinish(context)).toBe(0);
    expect(machine.launchFinish(context)).toBe(2);
  });

  it('hands host data, and that the VCEK is disabled, to reports', () => {
    machine = new Machine().init();
    const guest = machine.runGuest({
      finish: [
        [0x20, 8, 0xc0ffeen],
        [0x18, 1, 0],
      ],
    });
    expect(hex(guest.report().report.subarray(0xc0, 0xc8))).toBe('eeffc00000000000');
    const other = machine.runGuest({ asid: 2, finish: [[0x18, 1, 4]] });
    expect(other.report().status).toBe(0x27);
  });
});
