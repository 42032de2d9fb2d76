/** SNP_VLEK_LOAD, and which of the chip's keys reports and derived keys come from with and without a VLEK (reference facts.md 3.5 and 3.7). */
import { verify } from 'node:crypto';
import { afterEach, describe, expect, it } from 'vitest';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { Chip, vlekSigningKey, wrapVlek } from '../../../src/hardware/chip.ts';
import { CMD, type Field, type Guest, hex, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const MILAN = 0xdb18000000000004n;
const OLDER = 0xdb17000000000004n;
const INVALID_KEY = 0x27;
const sticks = new Uint8Array(384).map((_, i) => i);
const otherSticks = new Uint8Array(384).fill(9);

const wrapped = (
  options: { tcb?: bigint; keyTcb?: bigint; chip?: Chip; sticks?: Uint8Array } = {},
): Uint8Array => {
  const { tcb = machine.chip.reportedTcb, chip = machine.chip } = options;
  return wrapVlek({
    sticks: options.sticks ?? sticks,
    tcb,
    wrappingKey: chip.vlekWrappingKey(options.keyTcb ?? tcb),
    iv: new Uint8Array(12),
  });
};
const load = (blob: Uint8Array, fields: readonly Field[] = []): number => {
  const at = machine.page();
  machine.memory.write(at, blob);
  return machine.run(CMD.VLEK_LOAD, [[0, 4, 16], [8, 8, at], ...fields]);
};
const configure = (...fields: Field[]): number => machine.run(CMD.CONFIG, fields);
const MASK_CHIP_KEY: Field = [8, 4, 2];

/** Who signed a report: the field that says so must be true. */
function signer(report: Uint8Array): 'VCEK' | 'VLEK' | 'none' {
  const says = (report[0x48]! >> 2) & 7;
  if (says === 7) {
    expect(report.subarray(0x2a0).every((byte) => byte === 0)).toBe(true);
    return 'none';
  }
  const number = (at: number) => Buffer.from(report.subarray(at, at + 48)).reverse();
  const signature = Buffer.concat([number(0x2a0), number(0x2e8)]);
  const tcb = new DataView(report.buffer, report.byteOffset).getBigUint64(0x180, true);
  const { publicKey: key } = says === 1 ? vlekSigningKey(sticks, 'random') : machine.chip.vcek(tcb);
  expect(verify('sha384', report.subarray(0, 0x2a0), { key, dsaEncoding: 'ieee-p1363' }, signature)).toBe(
    true,
  );
  return says === 1 ? 'VLEK' : 'VCEK';
}

/** A key derived from the chip's: the status, and the key where there is one. `select`: KEY_SEL. */
function derive(guest: Guest, select: number): string {
  const request = new Uint8Array(32);
  request[0] = select << 1;
  const { payload } = guest.ask(3, request);
  return payload[0] === 0 ? hex(payload.subarray(32)) : `status ${payload[0]}`;
}

describe('SNP_VLEK_LOAD', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine();
    expect(load(wrapped(), [[0, 4, 15]])).toBe(0x16);
    expect(load(wrapped(), [[4, 1, 1]])).toBe(0x16);
    for (const reserved of [5, 6, 7]) expect(load(wrapped(), [[reserved, 1, 1]])).toBe(0x16);
    expect(load(wrapped())).toBe(1);
    machine.init();
    expect(load(wrapped(), [[8, 8, 1 << 30]])).toBe(9);
    const change = (...offsets: number[]): Uint8Array => {
      const blob = wrapped();
      for (const at of offsets) blob[at]! ^= 1;
      return blob;
    };
    for (const reserved of [12, 15, 0x198, 0x19f]) expect(load(change(reserved, 0x190, 0x10))).toBe(0x16);
    expect(load(change(0x190, 0x10))).toBe(0x21);
    for (const at of [0, 11, 0x10, 0x18f, 0x1a0, 0x1af]) expect(load(change(at))).toBe(0x0b);
    expect(load(wrapped())).toBe(0);
  });

  it('takes a key that was wrapped for this chip and its reported TCB alone', () => {
    machine = new Machine().init();
    expect(load(wrapped({ tcb: OLDER }))).toBe(0x21);
    expect(load(wrapped({ tcb: MILAN, keyTcb: OLDER }))).toBe(0x0b);
    expect(load(wrapped({ chip: new Chip({ generation: 'milan', entropy: seededEntropy(99) }) }))).toBe(0x0b);
    expect(load(wrapped())).toBe(0);
  });

  it('leaves the key that was loaded before in place when it fails, and puts another in its place when it does not', () => {
    machine = new Machine().init();
    const guest = machine.runGuest();
    load(wrapped());
    const before = derive(guest, 2);
    expect(load(wrapped({ tcb: OLDER, sticks: otherSticks }))).toBe(0x21);
    expect(signer(guest.report().report)).toBe('VLEK');
    expect(derive(guest, 2)).toBe(before);
    expect(load(wrapped({ sticks: otherSticks }))).toBe(0);
    expect(derive(guest, 2)).not.toBe(before);
  });
});

describe('the key that a guest asks for', () => {
  const REFUSED = 'refused';
  // A VLEK is loaded, the guest's VCEK is disabled, the chip's key is masked; who signs for KEY_SEL 0 (auto), 1 (VCEK), 2 (VLEK), 3.
  const ROWS = [
    [false, false, false, ['VCEK', 'VCEK', REFUSED, REFUSED]],
    [true, false, false, ['VLEK', 'VCEK', 'VLEK', REFUSED]],
    [false, true, false, [REFUSED, REFUSED, REFUSED, REFUSED]],
    [true, true, false, ['VLEK', REFUSED, 'VLEK', REFUSED]],
    [false, false, true, ['none', 'none', REFUSED, REFUSED]],
    [true, false, true, ['VLEK', 'none', 'VLEK', REFUSED]],
    [false, true, true, [REFUSED, REFUSED, REFUSED, REFUSED]],
    [true, true, true, ['VLEK', REFUSED, 'VLEK', REFUSED]],
  ] as const;
  const machineOf = (vlek: boolean, vcekDisabled: boolean, masked: boolean): Guest => {
    machine = new Machine().init();
    const guest = machine.runGuest({ finish: [[0x18, 1, vcekDisabled ? 4 : 0]] });
    if (vlek) expect(load(wrapped())).toBe(0);
    if (masked) expect(configure(MASK_CHIP_KEY)).toBe(0);
    return guest;
  };

  it.each(ROWS)(
    'with a VLEK %s, VCEK disabled %s, chip key masked %s signs its reports',
    (vlek, disabled, masked, want) => {
      const guest = machineOf(vlek, disabled, masked);
      const got = [0, 1, 2, 3].map((keySelect) => {
        const { status, report } = guest.report({ keySelect });
        if (status === 0) return signer(report);
        expect(status).toBe(INVALID_KEY);
        expect(report.every((byte) => byte === 0)).toBe(true);
        return REFUSED;
      });
      expect(got).toEqual(want);
      const signed = guest.report({ keySelect: 2 });
      if (signed.status === 0) expect(signed.report[0x48]! & 2).toBe(masked ? 2 : 0);
    },
  );

  it.each(ROWS)(
    'with a VLEK %s, VCEK disabled %s, chip key masked %s derives from it',
    (vlek, disabled, masked, signers) => {
      const guest = machineOf(vlek, disabled, masked);
      const keys = [0, 1, 2, 3].map((select) => derive(guest, select));
      // A masked chip gives no key that any of its own makes, a VLEK's neither.
      const refused = keys.map((key) => key === `status ${INVALID_KEY}`);
      expect(refused).toEqual(signers.map((who) => masked || who === REFUSED));
      for (let i = 0; i < 4; i++)
        for (let j = 0; j < 4; j++)
          if (!refused[i] && !refused[j]) expect(keys[i] === keys[j]).toBe(signers[i] === signers[j]);
    },
  );
});

describe('a VLEK and TCBs that change', () => {
  const reportedTcb = (report: Uint8Array): bigint =>
    new DataView(report.buffer, report.byteOffset).getBigUint64(0x180, true);

  it('stays loaded over SNP_CONFIG: reports show the new reported TCB, and the old key signs them', () => {
    machine = new Machine().init();
    const guest = machine.runGuest();
    load(wrapped());
    const before = [derive(guest, 1), derive(guest, 2)];
    expect(configure([0, 8, OLDER])).toBe(0);
    const { report } = guest.report();
    expect([signer(report), reportedTcb(report)]).toEqual(['VLEK', OLDER]);
    expect(signer(guest.report({ keySelect: 1 }).report)).toBe('VCEK');
    const after = [derive(guest, 1), derive(guest, 2)];
    // What comes from the VCEK is another key at another TCB.
    expect(after.map((key, i) => key === before[i])).toEqual([false, true]);
  });

  it('is for the reported TCB of when it is loaded', () => {
    machine = new Machine().init();
    configure([0, 8, OLDER]);
    expect(load(wrapped({ tcb: MILAN }))).toBe(0x21);
    expect(load(wrapped({ tcb: OLDER }))).toBe(0);
    configure([0, 8, 0]);
    expect(load(wrapped({ tcb: OLDER }))).toBe(0x21);
    expect(load(wrapped({ tcb: MILAN }))).toBe(0);
  });

  it('outlives an update of the firmware, its commit, and a rollback that is refused', () => {
    machine = new Machine().init();
    const guest = machine.runGuest();
    load(wrapped());
    const newer = machine.chip.tcbOf({ snp: 25 });
    expect(machine.asp.updateFirmware({ tcb: newer })).toBe(0);
    // The reported TCB has not moved: that of the VLEK neither.
    expect(load(wrapped({ tcb: newer }))).toBe(0x21);
    expect(machine.run(CMD.COMMIT, [[0, 4, 4]])).toBe(0);
    expect(load(wrapped({ tcb: newer }))).toBe(0x21);
    expect(machine.asp.updateFirmware({ tcb: MILAN })).toBe(0x21);
    const { report } = guest.report();
    expect([signer(report), reportedTcb(report)]).toEqual(['VLEK', MILAN]);
    configure([0, 8, 0]);
    expect(load(wrapped({ tcb: newer }))).toBe(0);
    const later = guest.report().report;
    expect([signer(later), reportedTcb(later)]).toEqual(['VLEK', newer]);
  });

  it.each([
    ['SNP_SHUTDOWN_EX', CMD.SHUTDOWN_EX, [[0, 4, 8]] as Field[]],
    ['SNP_SHUTDOWN', 0x82, [] as Field[]],
  ])('goes with %s', (_name, command, fields) => {
    machine = new Machine().init();
    load(wrapped());
    const capabilities = (): number => {
      const at = machine.firmwarePage();
      machine.run(CMD.PLATFORM_STATUS, [[0, 8, at]]);
      return machine.read(at, 32)[8]!;
    };
    expect(capabilities()).toBe(8 | 4);
    expect(machine.run(command, fields)).toBe(0);
    machine.init();
    expect(capabilities()).toBe(8);
    const guest = machine.runGuest();
    expect(guest.report({ keySelect: 2 }).status).toBe(INVALID_KEY);
    expect(signer(guest.report().report)).toBe('VCEK');
  });
});
