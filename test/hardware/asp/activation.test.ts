import { afterEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { CMD, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const flush = (): number => {
  machine.asp.cachesWrittenBack();
  return machine.run(CMD.DF_FLUSH);
};

describe('GCTX_CREATE', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine({ bytes: 32 << 20 });
    const page = machine.page();
    const create = (at: number) => machine.run(CMD.GCTX_CREATE, [[0, 8, at]]);
    expect(create(page + 1)).toBe(0x16);
    expect(create(page)).toBe(1);
    machine.init();
    expect(create(machine.rmp.base)).toBe(0x16);
    expect(create(page)).toBe(0x1a);
    expect(create(1 << 30)).toBe(0x1a);
    const large = machine.page(9);
    machine.rmpupdate(large, { immutable: true, large: true });
    expect(create(large)).toBe(0x19);
    machine.rmpupdate(page, { immutable: true });
    expect(create(page)).toBe(0);
    expect(machine.stateOf(page)).toBe('context');
    expect(create(page)).toBe(0x1a);
  });

  it('clears the page, and keeps its content from the host', () => {
    machine = new Machine().init();
    const page = machine.page();
    machine.memory.write(page, new Uint8Array(4096).fill(0xab));
    machine.rmpupdate(page, { immutable: true });
    machine.run(CMD.GCTX_CREATE, [[0, 8, page]]);
    const seen = machine.read(page, 4096);
    expect(seen.every((byte) => byte === 0)).toBe(false);
    expect(Buffer.from(seen).includes(Buffer.alloc(16, 0xab))).toBe(false);
  });
});

describe('ACTIVATE', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine();
    expect(machine.activate((machine.page() + 1) as Spa, 1)).toBe(0x16);
    expect(machine.activate(machine.page(), 1)).toBe(1);
    machine.init();
    expect(machine.activate(machine.page(), 1)).toBe(0x10);
    const context = machine.createContext();
    expect(machine.activate(context, 0)).toBe(2);
    machine.launchStart(context);
    expect(machine.activate(context, 1024)).toBe(0x0d);
    const page = machine.page();
    machine.rmpupdate(page, { asid: 600, gpa: 0 });
    expect(machine.activate(context, 600)).toBe(3);
    expect(machine.activate(context, 601)).toBe(0x0d);
    expect(machine.activate(context, 510)).toBe(0x0d);
    expect(machine.activate(context, 0)).toBe(0x0d);
    expect(machine.activate(context, 509)).toBe(0);
    const second = machine.createContext();
    machine.launchStart(second);
    expect(machine.activate(second, 509)).toBe(0x0c);
    expect(machine.activate(context, 1)).toBe(0x12);
    expect(machine.activate(context, 509)).toBe(0x0c);
    machine.launchFinish(context);
    expect(machine.activate(second, 2)).toBe(0);
    expect(machine.activate(second, 509)).toBe(0x0c);
  });

  it('wants a flush of the data fabric for an ASID that a guest ran with, and that wants WBINVD', () => {
    machine = new Machine();
    machine.run(CMD.INIT_EX, [[0, 4, 1]]);
    const context = machine.createContext();
    machine.launchStart(context);
    expect(machine.activate(context, 1)).toBe(0x0f);
    expect(machine.run(CMD.DF_FLUSH)).toBe(0x0e);
    expect(flush()).toBe(0);
    expect(machine.activate(context, 1)).toBe(0);
    machine.launchFinish(context);
    expect(machine.run(CMD.DECOMMISSION, [[0, 8, context]])).toBe(0);
    const next = machine.createContext();
    machine.launchStart(next);
    expect(machine.activate(next, 1)).toBe(0x0f);
    expect(machine.run(CMD.DF_FLUSH)).toBe(0x0e);
    expect(flush()).toBe(0);
    expect(machine.activate(next, 1)).toBe(0);
  });

  it('takes the ASID of a guest that never ran without a flush', () => {
    machine = new Machine().init();
    const context = machine.startGuest();
    machine.run(CMD.DECOMMISSION, [[0, 8, context]]);
    expect(() => machine.startGuest()).not.toThrow();
  });

  it('keeps a guest of a single socket from a machine of two', () => {
    machine = new Machine({ sockets: 2 }).init();
    const context = machine.createContext();
    machine.launchStart(context, 0x130000n);
    expect(machine.activate(context, 1)).toBe(7);
    // Before it asks whether the ASID is one, but not for those that no counter is for.
    expect(machine.activate(context, 1023)).toBe(7);
    expect(machine.activate(context, 1024)).toBe(0x0d);
    const other = machine.createContext();
    machine.launchStart(other, 0x30000n);
    expect(machine.activate(other, 1)).toBe(0);
  });

  it('lets a guest of a single socket onto a machine of one', () => {
    machine = new Machine({ sockets: 1 }).init();
    const context = machine.createContext();
    machine.launchStart(context, 0x130000n);
    expect(machine.activate(context, 1)).toBe(0);
  });

  it('looks for pages of the ASID in the RMP, and not behind it', () => {
    machine = new Machine().init();
    const context = machine.createContext();
    machine.launchStart(context);
    machine.memory.store64(machine.rmp.end, 5n << 51n);
    expect(machine.activate(context, 5)).toBe(0);
  });
});

describe('ACTIVATE_EX', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine();
    const ids = machine.page();
    const uninitialised = [
      [0, 4, 0x20],
      [8, 8, ids],
    ] as const;
    expect(machine.run(CMD.ACTIVATE_EX, uninitialised)).toBe(1);
    machine.init();
    const context = machine.createContext();
    const page = machine.page();
    machine.rmpupdate(page, { asid: 600, gpa: 0 });
    const activate = (options: {
      length?: number;
      reserved?: number;
      at?: number;
      asid?: number;
      count?: number;
      list?: number;
    }) =>
      machine.run(CMD.ACTIVATE_EX, [
        [0, 4, options.length ?? 0x20],
        [4, 4, options.reserved ?? 0],
        [8, 8, options.at ?? context],
        [16, 4, options.asid ?? 1],
        [20, 4, options.count ?? 2],
        [24, 8, options.list ?? ids],
      ]);
    expect(activate({ length: 0x18 })).toBe(0x16);
    expect(activate({ reserved: 1 })).toBe(0x16);
    expect(activate({ at: context + 1 })).toBe(0x16);
    expect(activate({ at: ids })).toBe(0x10);
    expect(activate({})).toBe(2);
    machine.launchStart(context);
    expect(activate({ asid: 600 })).toBe(3);
    expect(activate({ asid: 1024 })).toBe(0x0d);
    expect(activate({ asid: 0 })).toBe(0x0d);
    expect(activate({ count: 0 })).toBe(0x16);
    expect(activate({ count: 1025 })).toBe(0x16);
    expect(activate({ list: 1 << 30 })).toBe(9);
    machine.startGuest({ asid: 2 });
    expect(activate({ asid: 2 })).toBe(0x0c);
    expect(activate({ count: 1024 })).toBe(0);
    expect(activate({})).toBe(0);
    expect(activate({ asid: 2 })).toBe(0x12);
  });
});

describe('DECOMMISSION', () => {
  it('checks in the order of the firmware, and turns the page into a firmware page', () => {
    machine = new Machine();
    const decommission = (at: number) => machine.run(CMD.DECOMMISSION, [[0, 8, at]]);
    expect(decommission(1)).toBe(0x16);
    expect(decommission(machine.page())).toBe(1);
    machine.init();
    expect(decommission(machine.page())).toBe(0x10);
    const context = machine.startGuest();
    expect(decommission(context)).toBe(0);
    expect(machine.stateOf(context)).toBe('firmware');
    expect(decommission(context)).toBe(0x10);
    expect(machine.reclaim(context)).toBe(0);
    expect(machine.stateOf(context)).toBe('reclaim');
    machine.rmpupdate(context, { assigned: false });
    expect(machine.read(context, 4096).every((byte) => byte === 0)).toBe(true);
  });

  it('takes the key with it: the next guest of the ASID reads something else', () => {
    machine = new Machine().init();
    const content = new Uint8Array(4096).fill(0x77);
    const context = machine.startGuest();
    const page = machine.preGuestPage(0x1000, content);
    machine.launchUpdate(context, page, 1);
    machine.run(CMD.DECOMMISSION, [[0, 8, context]]);
    machine.rmpupdate(page, { assigned: false });
    machine.startGuest();
    expect(Buffer.from(machine.readAs(1, page, 4096)).includes(Buffer.alloc(16, 0x77))).toBe(false);
    expect(Buffer.from(machine.read(page, 4096)).includes(Buffer.alloc(16, 0x77))).toBe(false);
  });
});

describe('GUEST_STATUS', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine();
    const status = (context: number, answer: number) =>
      machine.run(CMD.GUEST_STATUS, [
        [0, 8, context],
        [8, 8, answer],
      ]);
    const host = machine.page();
    expect(status(1, host)).toBe(0x16);
    expect(status(host, host + 0xfe1)).toBe(0x16);
    expect(status(host, host)).toBe(1);
    machine.init();
    expect(status(host, host)).toBe(0x10);
    const context = machine.createContext();
    expect(status(context, machine.rmp.base)).toBe(0x16);
    expect(status(context, host)).toBe(0x1a);
    expect(status(context, 1 << 30)).toBe(9);
    expect(status(context, machine.firmwarePage())).toBe(0);
    expect(status(context, machine.firmwarePage() + 0xfe0)).toBe(0);
  });

  it('tells policy, ASID, state, and whether the VCEK is disabled', () => {
    machine = new Machine().init();
    const answer = machine.firmwarePage();
    const read = (context: number): readonly (number | bigint)[] => {
      expect(
        machine.run(CMD.GUEST_STATUS, [
          [0, 8, context],
          [8, 8, answer],
        ]),
      ).toBe(0);
      const bytes = machine.read(answer, 32);
      const view = new DataView(bytes.buffer);
      return [
        view.getBigUint64(0, true),
        view.getUint32(8, true),
        view.getUint8(12),
        view.getUint32(16, true),
      ];
    };
    const context = machine.createContext();
    expect(read(context)).toEqual([0n, 0, 0, 0]);
    machine.launchStart(context, 0xb0000n);
    expect(read(context)).toEqual([0xb0000n, 0, 1, 0]);
    machine.activate(context, 3);
    machine.launchFinish(context, [[0x18, 1, 4]]);
    expect(read(context)).toEqual([0xb0000n, 3, 2, 1]);
  });
});
