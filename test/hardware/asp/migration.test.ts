import { createHash } from 'node:crypto';
import { afterEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { CMD, Guest, hex, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const [EXPORT, IMPORT, ABSORB, VMRK, ABSORB_NOMA] = [7, 9, 11, 13, 15];
const statusOf = (payload: Uint8Array): number => new DataView(payload.buffer).getUint32(0, true);

/** The payload of EXPORT_REQ. */
function exportOf(context: number, options: { flags?: number; reserved?: number } = {}): Uint8Array {
  const view = new DataView(new ArrayBuffer(16));
  view.setBigUint64(0, BigInt(context), true);
  view.setUint32(8, options.flags ?? 0, true);
  view.setUint32(12, options.reserved ?? 0, true);
  return new Uint8Array(view.buffer);
}

/** The payload of IMPORT_REQ and the two ABSORB requests. */
function importOf(
  context: number,
  image: Uint8Array,
  options: { size?: number; version?: number; reserved?: number } = {},
): Uint8Array {
  const payload = new Uint8Array(0x320);
  const view = new DataView(payload.buffer);
  view.setBigUint64(0, BigInt(context), true);
  view.setUint32(8, options.size ?? 0x300, true);
  view.setUint32(12, options.version ?? 3, true);
  payload[0x1f] = options.reserved ?? 0;
  payload.set(image, 0x20);
  return payload;
}

const launch = (context: Spa, policy: bigint, flags: number, agent = 0): number =>
  machine.run(CMD.LAUNCH_START, [
    [0, 8, context],
    [8, 8, policy],
    [16, 8, agent],
    [0x18, 4, flags],
  ]);

/** A guest that has `agent` as its migration agent. */
function boundGuest(agent: Guest, asid: number): Guest {
  const context = machine.createContext();
  expect(launch(context, 0x70000n, 1, agent.context)).toBe(0);
  expect(machine.activate(context, asid)).toBe(0);
  return machine.finishGuest(context, { asid });
}

describe('EXPORT_REQ', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine().init();
    const guest = machine.runGuest();
    const other = machine.runGuest({ asid: 2 });
    const launching = machine.startGuest({ asid: 3 });
    const ask = (payload: Uint8Array, vmpck = 0) => statusOf(guest.ask(EXPORT, payload, { vmpck }).payload);
    expect(ask(exportOf(guest.context + 1))).toBe(0x16);
    expect(ask(exportOf(machine.page(), { flags: 2 }))).toBe(0x16);
    expect(ask(exportOf(machine.page(), { reserved: 1 }))).toBe(0x16);
    expect(ask(exportOf(machine.page()))).toBe(0x10);
    expect(ask(exportOf(launching))).toBe(2);
    expect(ask(exportOf(other.context))).toBe(0x10);
    expect(ask(exportOf(guest.context), 1)).toBe(0x10);
    expect(ask(exportOf(guest.context, { flags: 1 }))).toBe(0);
    expect(machine.stateOf(guest.context)).toBe('context');
    expect(ask(exportOf(guest.context))).toBe(0);
    expect(machine.stateOf(guest.context)).toBe('firmware');
  });

  it('lets a guest export itself: keys, digest, counters', () => {
    machine = new Machine().init();
    const guest = machine.runGuest();
    const measurement = hex(guest.report().report.subarray(0x90, 0xc0));
    const { payload } = guest.ask(EXPORT, exportOf(guest.context, { flags: 1 }));
    expect(payload).toHaveLength(4000);
    const view = new DataView(payload.buffer);
    expect([view.getUint32(4, true), view.getUint32(8, true)]).toEqual([0x300, 3]);
    const image = payload.subarray(0x20);
    expect(hex(image.subarray(0, 48))).toBe(measurement);
    expect(hex(image.subarray(80, 112))).toBe(hex(guest.vmpck(0)));
    expect(view.getBigUint64(0x20 + 0x1c0, true)).toBe(2n);
  });

  it('lets a migration agent export its guest, and nobody else', () => {
    machine = new Machine().init();
    const agent = machine.runGuest();
    const guest = boundGuest(agent, 2);
    expect(statusOf(guest.ask(EXPORT, exportOf(guest.context)).payload)).toBe(0x10);
    const keeping = exportOf(guest.context, { flags: 1 });
    expect(statusOf(agent.ask(EXPORT, keeping, { vmpck: 1 }).payload)).toBe(0);
    expect(statusOf(agent.ask(EXPORT, exportOf(guest.context)).payload)).toBe(0);
    expect(machine.stateOf(guest.context)).toBe('firmware');
    expect(machine.stateOf(agent.context)).toBe('context');
    expect(hex(agent.report().report.subarray(0x160, 0x180))).toBe('ff'.repeat(32));
  });

  it('binds by report id as well', () => {
    machine = new Machine().init();
    const agent = machine.runGuest();
    const guest = boundGuest(agent, 2);
    const mine = hex(agent.report().report.subarray(0x140, 0x160));
    expect(hex(guest.report().report.subarray(0x160, 0x180))).toBe(mine);
    // Another guest has the agent's context page then, and a report id of its own.
    expect(machine.run(CMD.DECOMMISSION, [[0, 8, agent.context]])).toBe(0);
    expect(machine.run(CMD.GCTX_CREATE, [[0, 8, agent.context]])).toBe(0);
    expect(machine.launchStart(agent.context)).toBe(0);
    expect(machine.activate(agent.context, 3)).toBe(0);
    const heir = machine.finishGuest(agent.context, { asid: 3 });
    expect(statusOf(heir.ask(EXPORT, exportOf(guest.context)).payload)).toBe(0x10);
  });
});

describe('IMPORT_REQ', () => {
  it('answers as firmware does that never saw a page swapped out', () => {
    machine = new Machine().init();
    const guest = machine.runGuest();
    const target = machine.createContext();
    const image = new Uint8Array(0x300);
    const ask = (payload: Uint8Array) => {
      const answer = guest.ask(IMPORT, payload).payload;
      expect(answer).toHaveLength(16);
      return statusOf(answer);
    };
    expect(ask(importOf(target + 1, image))).toBe(0x16);
    expect(ask(importOf(target, image, { reserved: 1 }))).toBe(0x16);
    expect(ask(importOf(machine.page(), image, { size: 0x2ff }))).toBe(0x16);
    expect(ask(importOf(machine.page(), image, { version: 2 }))).toBe(0x16);
    expect(ask(importOf(machine.page(), image))).toBe(0x10);
    expect(ask(importOf(guest.context, image))).toBe(2);
    expect(ask(importOf(target, image))).toBe(0x1b);
    image[0x1e0 + 0x20] = 1;
    expect(ask(importOf(target, image))).toBe(0x15);
  });
});

describe('ABSORB_REQ', () => {
  it('wants a guest that was launched for it, with the digest that the context names', () => {
    machine = new Machine().init();
    const agent = machine.runGuest();
    const exported = machine.runGuest({ asid: 2 });
    const image = exported.ask(EXPORT, exportOf(exported.context, { flags: 1 })).payload.slice(0x20, 0x320);
    const ask = (payload: Uint8Array) => statusOf(agent.ask(ABSORB, payload).payload);
    const plain = machine.startGuest({ asid: 3 });
    expect(ask(importOf(plain + 1, image))).toBe(0x16);
    expect(ask(importOf(machine.page(), image, { reserved: 1 }))).toBe(0x16);
    expect(ask(importOf(machine.page(), image, { size: 1 }))).toBe(0x10);
    expect(ask(importOf(plain, image))).toBe(2);
    expect(ask(importOf(exported.context, image))).toBe(2);
    expect(ask(importOf(machine.createContext(), image))).toBe(2);
    const target = machine.createContext();
    launch(target, 0x30000n, 2);
    machine.activate(target, 4);
    const page = machine.preGuestPage(0x1000, undefined, 4);
    machine.launchUpdate(target, page, 1, { imi: true });
    expect(ask(importOf(target, image))).toBe(0x0b);
    const fitting = image.slice();
    // The digest of an all-zero IMI page at 0x1000, as IMD.
    fitting.set(measurementOfImage(), 0x190);
    expect(ask(importOf(target, fitting, { size: 1 }))).toBe(0x16);
    fitting[0x1e0 + 0x20] = 1;
    expect(ask(importOf(target, fitting))).toBe(0x15);
    fitting[0x1e0 + 0x20] = 0;
    expect(ask(importOf(target, fitting))).toBe(0);
    expect(ask(importOf(target, fitting))).toBe(2);
  });

  /** PAGE_INFO of an all-zero NORMAL page with IMI_PAGE at 0x1000. */
  function measurementOfImage(): Uint8Array {
    const info = new Uint8Array(112);
    info.set(createHash('sha384').update(new Uint8Array(4096)).digest(), 48);
    info.set([0x70, 0, 1, 1], 96);
    info.set([0, 0x10], 104);
    return createHash('sha384').update(info).digest();
  }
});

describe('ABSORB_NOMA_REQ', () => {
  it('takes over a context that was exported from the same image', () => {
    machine = new Machine().init();
    /** A guest whose pages all belong to its image. */
    const guestOfImage = (asid: number): Guest => {
      const context = machine.startGuest({ asid });
      const secrets = machine.preGuestPage(0x2000, undefined, asid);
      expect(machine.launchUpdate(context, secrets, 5, { imi: true })).toBe(0);
      expect(machine.launchFinish(context)).toBe(0);
      return new Guest(machine, context, machine.readAs(asid, secrets, 4096));
    };
    const source = guestOfImage(1);
    const target = guestOfImage(2);
    const image = source.ask(EXPORT, exportOf(source.context, { flags: 1 })).payload.slice(0x20, 0x320);
    const ask = (payload: Uint8Array) => statusOf(target.ask(ABSORB_NOMA, payload).payload);
    expect(ask(importOf(target.context, image))).toBe(0x16);
    expect(ask(importOf(0, image, { reserved: 1 }))).toBe(0x16);
    const other = image.slice();
    other[0x190]! ^= 1;
    expect(ask(importOf(0, other, { size: 1 }))).toBe(0x0b);
    expect(ask(importOf(0, image, { version: 1 }))).toBe(0x16);
    const swapped = image.slice();
    swapped[0x1e0 + 0x20] = 1;
    expect(ask(importOf(0, swapped))).toBe(0x15);
    const spent = image.slice();
    new DataView(spent.buffer).setBigUint64(0x1c0, 0xffff_ffff_ffff_fffcn, true);
    expect(ask(importOf(0, spent))).toBe(0);
    // Now it has the other's keys, and a counter that stands at its end.
    const last = { sequence: 0xffff_ffff_ffff_ffffn };
    machine.memory.write(target.request, source.message(17, new Uint8Array(128), last));
    const request = [
      [0, 8, target.context],
      [8, 8, target.request],
      [16, 8, target.response],
    ] as const;
    expect(machine.run(CMD.GUEST_REQUEST, request)).toBe(0x1d);
    // A message under the keys that it had is refused.
    expect(target.send(target.message(EXPORT, exportOf(0)))).toBe(0x0b);
  });

  it('is not for guests with pages that are no part of their image: both digests have to be the context’s', () => {
    machine = new Machine().init();
    const context = machine.startGuest({ asid: 2 });
    const secrets = machine.preGuestPage(0x2000, undefined, 2);
    machine.launchUpdate(context, secrets, 5, { imi: true });
    machine.launchUpdate(context, machine.preGuestPage(0x3000, undefined, 2), 3);
    machine.launchFinish(context);
    const guest = new Guest(machine, context, machine.readAs(2, secrets, 4096));
    const image = guest.ask(EXPORT, exportOf(context, { flags: 1 })).payload.slice(0x20, 0x320);
    const ask = (bytes: Uint8Array) => statusOf(guest.ask(ABSORB_NOMA, importOf(0, bytes)).payload);
    // Its own digest of the image; then that of all its pages in the image's place.
    expect(ask(image)).toBe(0x0b);
    image.set(image.slice(0, 48), 0x190);
    expect(ask(image)).toBe(0x0b);
  });

  it('is not for guests with a migration agent', () => {
    machine = new Machine().init();
    const guest = boundGuest(machine.runGuest(), 2);
    const image = new Uint8Array(0x300);
    expect(statusOf(guest.ask(ABSORB_NOMA, importOf(0, image)).payload)).toBe(0x10);
  });
});

describe('VMRK_REQ', () => {
  it('lets a migration agent give its guest a root key before it runs', () => {
    machine = new Machine().init();
    const agent = machine.runGuest();
    const guest = machine.createContext();
    launch(guest, 0x70000n, 1, agent.context);
    const ask = (context: number, options: { vmpck?: number; reserved?: number } = {}) => {
      const payload = new Uint8Array(64);
      new DataView(payload.buffer).setBigUint64(0, BigInt(context), true);
      payload[31] = options.reserved ?? 0;
      return statusOf(agent.ask(VMRK, payload, { vmpck: options.vmpck ?? 0 }).payload);
    };
    expect(ask(guest, { vmpck: 1 })).toBe(0x16);
    expect(ask(guest + 1)).toBe(0x16);
    expect(ask(guest, { reserved: 1 })).toBe(0x16);
    expect(ask(machine.page())).toBe(0x10);
    expect(ask(agent.context)).toBe(2);
    const image = machine.createContext();
    launch(image, 0x70000n, 3, agent.context);
    expect(ask(image)).toBe(2);
    expect(ask(machine.startGuest({ asid: 3 }))).toBe(0x10);
    expect(ask(guest)).toBe(0);
  });
});
