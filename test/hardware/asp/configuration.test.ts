import { afterEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { Trace } from '../../../src/base/trace.ts';
import { SecureProcessor } from '../../../src/hardware/asp/secure-processor.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { CMD, type Field, hex, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const configure = (...fields: Field[]): number => machine.run(CMD.CONFIG, fields);
const MILAN = 0xdb18000000000004n;

describe('SNP_CONFIG', () => {
  it.each([
    ['the committed TCB', [[0, 8, MILAN]], 0],
    ['0 for the committed TCB', [[0, 8, 0]], 0],
    ['an older SNP', [[0, 8, 0xdb17000000000004n]], 0],
    ['a newer boot loader', [[0, 8, 0xdb18000000000005n]], 0x16],
    ['an older boot loader with newer microcode', [[0, 8, 0xdc18000000000003n]], 0],
    ['newer microcode', [[0, 8, 0xdc18000000000004n]], 0x16],
    ['a reserved byte of the TCB', [[0, 8, 0xdb18000000010003n]], 0x16],
    ['reserved flags', [[8, 4, 4]], 0x16],
    ['a reserved byte', [[63, 1, 1]], 0x16],
  ] as const)('with %s answers', (_what, fields, want) => {
    machine = new Machine().init();
    expect(configure(...fields)).toBe(want);
  });

  it('needs an initialised platform', () => {
    machine = new Machine();
    expect(configure()).toBe(1);
    expect(configure([8, 4, 4])).toBe(0x16);
  });

  it('changes reported TCB and key of reports, and masks', () => {
    machine = new Machine().init();
    const guest = machine.runGuest();
    configure([0, 8, 0xdb17000000000004n]);
    const older = guest.report().report;
    expect(new DataView(older.buffer, older.byteOffset).getBigUint64(0x180, true)).toBe(0xdb17000000000004n);
    configure([8, 4, 1]);
    const masked = guest.report().report;
    expect(masked.subarray(0x1a0, 0x1e0).every((byte) => byte === 0)).toBe(true);
    expect(masked.subarray(0x2a0).some((byte) => byte !== 0)).toBe(true);
    configure([8, 4, 2]);
    const unsigned = guest.report().report;
    expect(unsigned[0x48]).toBe(2 | (7 << 2));
    expect(unsigned.subarray(0x2a0).every((byte) => byte === 0)).toBe(true);
    expect(unsigned.subarray(0x1a0, 0x1e0).some((byte) => byte !== 0)).toBe(true);
  });
});

describe('firmware that changes while it runs', () => {
  const reported = (): bigint => machine.chip.reportedTcb;

  it('is current at once, committed by SNP_COMMIT, and reported by SNP_CONFIG', () => {
    machine = new Machine().init();
    const { asp, chip } = machine;
    const newer = chip.tcbOf({ snp: 25 });
    expect(asp.updateFirmware({ tcb: newer, version: { major: 1, minor: 55, build: 22 } })).toBe(0);
    expect([chip.currentTcb, chip.committedTcb, reported()]).toEqual([newer, MILAN, MILAN]);
    expect(configure([0, 8, newer])).toBe(0x16);
    expect(machine.run(CMD.COMMIT, [[0, 4, 5]])).toBe(0x16);
    expect(machine.run(CMD.COMMIT, [[0, 4, 4]])).toBe(0);
    expect([chip.committedTcb, reported()]).toEqual([newer, MILAN]);
    expect(chip.committedFirmware.build).toBe(22);
    expect(configure([0, 8, 0])).toBe(0);
    expect(reported()).toBe(newer);
  });

  it('is not rolled back below what is committed', () => {
    machine = new Machine().init();
    const { asp, chip } = machine;
    const newer = chip.tcbOf({ snp: 25 });
    asp.updateFirmware({ tcb: newer });
    expect(asp.updateFirmware({ tcb: MILAN })).toBe(0);
    asp.updateFirmware({ tcb: newer, version: { major: 1, minor: 56, build: 1 }, commit: true });
    expect(asp.updateFirmware({ tcb: MILAN })).toBe(0x21);
    expect(asp.updateFirmware({ version: { major: 1, minor: 55, build: 99 } })).toBe(0x22);
    expect(asp.updateFirmware({ tcb: newer | (1n << 16n) })).toBe(0x16);
    expect(chip.currentTcb).toBe(newer);
  });

  it('shows in reports: current, committed, launch TCB and versions', () => {
    machine = new Machine().init();
    const guest = machine.runGuest();
    const newer = machine.chip.tcbOf({ microcode: 220 });
    machine.asp.updateFirmware({ tcb: newer, version: { major: 1, minor: 56, build: 3 } });
    const { report } = guest.report();
    const view = new DataView(report.buffer, report.byteOffset);
    expect(view.getUint32(0, true)).toBe(3);
    expect([0x38, 0x180, 0x1e0, 0x1f0].map((at) => view.getBigUint64(at, true))).toEqual([
      newer,
      MILAN,
      MILAN,
      MILAN,
    ]);
    expect([...report.subarray(0x1e8, 0x1f0)]).toEqual([3, 56, 1, 0, 21, 55, 1, 0]);
    expect([...report.subarray(0x188, 0x18b)]).toEqual([25, 1, 1]);
  });
});

describe('FEATURE_INFO', () => {
  const ask = (ecx: number, at: number, length = 16) =>
    machine.run(CMD.FEATURE_INFO, [
      [0, 4, length],
      [4, 4, ecx],
      [8, 8, at],
    ]);

  it('checks in the order of the firmware', () => {
    machine = new Machine();
    const page = machine.page();
    expect(ask(2, page + 1, 15)).toBe(0x16);
    expect(ask(2, page + 1)).toBe(9);
    expect(ask(2, page + 0xff4)).toBe(9);
    expect(ask(2, page)).toBe(0x16);
    expect(ask(0, page)).toBe(0);
    expect(ask(0, page + 0xff0)).toBe(0);
    machine.init();
    expect(ask(2, page)).toBe(0x1a);
    expect(ask(2, machine.firmwarePage())).toBe(0x16);
  });

  it.each([
    ['milan', '01000000000000000300000000000000'],
    ['genoa', '01000000000000003700000000000000'],
    ['turin', '01000000000000003f00000000000000'],
  ] as const)('tells what the firmware of a %s can do', (generation, want) => {
    machine = new Machine({ generation });
    const page = machine.page();
    ask(0, page);
    expect(hex(machine.read(page, 16))).toBe(want);
    ask(1, page);
    expect(hex(machine.read(page, 16))).toBe('ff010000000000000000000000000000');
  });
});

describe('commands of SEV without SNP', () => {
  it('tell versions, and that SEV is not initialised', () => {
    machine = new Machine();
    expect(machine.run(4, [[0, 8, 0xffffffffffffffffn]])).toBe(0);
    expect(hex(machine.read(machine.buffer, 12))).toBe('013700000000001500000000');
  });

  it('leave pages as they are while SNP is not initialised, and on a machine without SNP', () => {
    machine = new Machine().init();
    const page = machine.firmwarePage();
    expect(machine.run(CMD.SHUTDOWN_EX, [[0, 4, 8]])).toBe(0);
    expect(machine.asp.execute(4, page)).toBe(0);
    expect(machine.stateOf(page)).toBe('firmware');
    const trace = new Trace();
    const memory = HostMemory.create({ bytes: 1 << 20, trace });
    const entropy = seededEntropy(1);
    const { chip } = machine;
    const asp = new SecureProcessor({ memory, trace, entropy, chip });
    const at = ((memory.allocate(0, memory.owner('test')) as number) * 4096) as Spa;
    expect(asp.execute(4, at)).toBe(0);
    expect(memory.load32(at)).toBe(0x3701);
    memory.close();
  });

  it('take an answer page of firmware once SNP is initialised, and give it back', () => {
    machine = new Machine().init();
    expect(machine.asp.execute(4, machine.buffer)).toBe(0x1a);
    const answer = machine.firmwarePage();
    expect(machine.asp.execute(4, answer)).toBe(0);
    expect(machine.stateOf(answer)).toBe('reclaim');
  });
});

describe('GET_ID', () => {
  it('writes the chip id, or says how long it is', () => {
    machine = new Machine();
    const page = machine.page();
    expect(
      machine.run(0x0c, [
        [0, 8, page],
        [8, 4, 63],
      ]),
    ).toBe(4);
    expect(machine.memory.load32((machine.buffer + 8) as never)).toBe(64);
    expect(
      machine.run(0x0c, [
        [0, 8, page],
        [8, 4, 64],
      ]),
    ).toBe(0);
    expect(hex(machine.read(page, 64))).toBe(hex(machine.chip.chipId));
  });
});
