import { afterEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { CMD, hex, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const DEBUG = 0xb0000n;
const debug = (command: number, context: number, source: number, destination: number): number =>
  machine.run(command, [
    [0, 8, context],
    [8, 8, source],
    [16, 8, destination],
  ]);

describe('DBG_DECRYPT', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine();
    const host = machine.page();
    const decrypt = (context: number, source: number, destination: number) =>
      debug(CMD.DBG_DECRYPT, context, source, destination);
    expect(decrypt(host + 1, host, host)).toBe(0x16);
    expect(decrypt(host, host + 16, host)).toBe(0x16);
    expect(decrypt(host, host, host)).toBe(1);
    machine.init();
    expect(decrypt(host, machine.rmp.base, host)).toBe(0x16);
    expect(decrypt(host, host, host)).toBe(0x10);
    const closed = machine.startGuest();
    const open = machine.startGuest({ asid: 2, policy: DEBUG });
    const firmware = machine.firmwarePage();
    expect(decrypt(closed, host, firmware)).toBe(0x1a);
    const foreign = machine.preGuestPage(0x1000, undefined, 3);
    expect(decrypt(closed, foreign, host)).toBe(0x1a);
    expect(decrypt(closed, foreign, firmware)).toBe(0x1c);
    const page = machine.preGuestPage(0x1000);
    machine.launchUpdate(closed, page, 1);
    expect(decrypt(closed, page, firmware)).toBe(7);
    const other = machine.preGuestPage(0x1000, new Uint8Array(4096).fill(9), 2);
    machine.launchUpdate(open, other, 1);
    expect(decrypt(open, other, firmware)).toBe(0);
    expect(hex(machine.read(firmware, 4096))).toBe('09'.repeat(4096));
    expect(hex(machine.readAs(2, other, 16))).toBe('09'.repeat(16));
  });

  it('reads 4 KiB inside of a 2 MiB page', () => {
    machine = new Machine({ bytes: 32 << 20 }).init();
    const context = machine.startGuest({ policy: DEBUG });
    const region = machine.page(9);
    machine.memory.write((region + 7 * 4096) as Spa, new Uint8Array(4096).fill(7));
    machine.rmpupdate(region, { gpa: 0, asid: 1, immutable: true, large: true });
    machine.launchUpdate(context, region, 1, { large: true });
    const firmware = machine.firmwarePage();
    expect(debug(CMD.DBG_DECRYPT, context, region + 7 * 4096, firmware)).toBe(0);
    expect(hex(machine.read(firmware, 16))).toBe('07'.repeat(16));
  });
});

describe('DBG_ENCRYPT', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine();
    const host = machine.page();
    const encrypt = (context: number, source: number, destination: number) =>
      debug(CMD.DBG_ENCRYPT, context, source, destination);
    expect(encrypt(host + 1, host, host)).toBe(1);
    machine.init();
    expect(encrypt(host + 1, host, host)).toBe(0x16);
    expect(encrypt(host, host, machine.rmp.base)).toBe(0x16);
    expect(encrypt(host, host, host)).toBe(0x10);
    const closed = machine.startGuest();
    const open = machine.startGuest({ asid: 2, policy: DEBUG });
    expect(encrypt(closed, host, host)).toBe(0x1a);
    expect(encrypt(closed, host, machine.preGuestPage(0, undefined, 3))).toBe(0x1c);
    expect(encrypt(closed, host, machine.preGuestPage(0))).toBe(7);
    const page = machine.preGuestPage(0, undefined, 2);
    machine.memory.write(host, new Uint8Array(4096).fill(5));
    expect(encrypt(open, 1 << 30, page)).toBe(9);
    expect(encrypt(open, host, page)).toBe(0);
    expect(hex(machine.readAs(2, page, 4096))).toBe('05'.repeat(4096));
    expect(hex(machine.read(page, 4096))).not.toContain('05'.repeat(16));
    expect(machine.stateOf(page)).toBe('pre-guest');
  });
});
