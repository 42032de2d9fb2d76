import { afterEach, describe, expect, it } from 'vitest';
import type { Spa } from '../../../src/base/address.ts';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { Trace } from '../../../src/base/trace.ts';
import { SecureProcessor } from '../../../src/hardware/asp/secure-processor.ts';
import { Chip } from '../../../src/hardware/chip.ts';
import { HostMemory } from '../../../src/hardware/memory/host-memory.ts';
import { CMD, type Field, Machine } from './machine.ts';

let machine: Machine;
afterEach(() => machine.close());

const initEx = (...fields: Field[]): number => machine.run(CMD.INIT_EX, fields);
const flush = (): number => {
  machine.asp.cachesWrittenBack();
  return machine.run(CMD.DF_FLUSH);
};
const shutdown = (flags: number, length = 8): number =>
  machine.run(CMD.SHUTDOWN_EX, [
    [0, 4, length],
    [4, 4, flags],
  ]);

function status() {
  const at = machine.rmp.initialised ? machine.firmwarePage() : machine.page();
  expect(machine.run(CMD.PLATFORM_STATUS, [[0, 8, at]])).toBe(0);
  const view = new DataView(machine.read(at, 32).buffer);
  return {
    major: view.getUint8(0),
    minor: view.getUint8(1),
    state: view.getUint8(2),
    flags: view.getUint8(3),
    build: view.getUint32(4, true),
    capabilities: view.getUint32(8, true),
    guests: view.getUint32(12, true),
    current: view.getBigUint64(16, true),
    reported: view.getBigUint64(24, true),
  };
}

describe('INIT_EX', () => {
  it.each([
    ['milan', 'SEV-TIO', [[0, 4, 0x11]], 0x16],
    ['milan', 'RAPL disabled', [[0, 4, 5]], 0x16],
    ['genoa', 'RAPL disabled', [[0, 4, 5]], 0],
    ['genoa', 'ciphertext hiding', [[0, 4, 9]], 0x16],
    ['turin', 'ciphertext hiding', [[0, 4, 9]], 0],
    [
      'turin',
      'ciphertext hiding up to ASID 99',
      [
        [0, 4, 9],
        [16, 2, 99],
      ],
      0,
    ],
    [
      'turin',
      'ciphertext hiding up to ASID 1006',
      [
        [0, 4, 9],
        [16, 2, 1006],
      ],
      0,
    ],
    [
      'turin',
      'ciphertext hiding up to ASID 1007',
      [
        [0, 4, 9],
        [16, 2, 1007],
      ],
      0x16,
    ],
    [
      'turin',
      'a highest ASID without hiding',
      [
        [0, 4, 1],
        [16, 2, 99],
      ],
      0x16,
    ],
    [
      'milan',
      'the reserved word',
      [
        [0, 4, 1],
        [4, 4, 1],
      ],
      0x16,
    ],
    [
      'milan',
      'the last reserved byte',
      [
        [0, 4, 1],
        [63, 1, 1],
      ],
      0x16,
    ],
    ['milan', 'no initialisation of an RMP that nobody has initialised', [[0, 4, 0]], 0x20],
    ['milan', 'a list, but nothing to initialise', [[0, 4, 2]], 0x20],
    ['milan', 'the RMP', [[0, 4, 1]], 0],
  ] as const)('on %s with %s answers', (generation, _what, fields, want) => {
    machine = new Machine({ generation });
    expect(initEx(...fields)).toBe(want);
    expect(machine.rmp.initialised).toBe(want === 0);
  });

  it('is done once', () => {
    machine = new Machine();
    expect(initEx([0, 4, 1])).toBe(0);
    expect(initEx([0, 4, 1])).toBe(1);
    expect(initEx([0, 4, 0x21])).toBe(0x16);
  });

  it('gives the RMP to firmware', () => {
    machine = new Machine().init();
    expect(machine.stateOf(machine.rmp.base)).toBe('firmware');
    expect(machine.stateOf((machine.rmp.end - 4096) as Spa)).toBe('firmware');
    expect(machine.stateOf(machine.buffer)).toBe('hypervisor');
  });

  it('fixes the pages of a list to the hypervisor, up to a bad range', () => {
    machine = new Machine();
    const list = machine.page();
    const pages = machine.page(3);
    const range = (i: number, base: number, count: number, reserved = 0) => {
      machine.memory.store64((list + 8 + i * 16) as Spa, BigInt(base));
      machine.memory.store32((list + 16 + i * 16) as Spa, count);
      machine.memory.store32((list + 20 + i * 16) as Spa, reserved);
    };
    machine.memory.store32(list, 3);
    range(0, pages, 2);
    range(1, pages + 4 * 4096, 1, 7);
    range(2, pages + 5 * 4096, 1);
    expect(initEx([0, 4, 3], [8, 8, list])).toBe(0);
    const states = Array.from({ length: 6 }, (_, i) => machine.stateOf((pages + i * 4096) as Spa));
    expect(states).toEqual(['hv-fixed', 'hv-fixed', ...new Array(4).fill('hypervisor')]);
  });

  it.each([
    ['that the flags do not name', 1, 0],
    ['inside of a page', 3, 8],
  ])('reads no list %s', (_what, flags, offset) => {
    machine = new Machine();
    const list = machine.page(1);
    const page = machine.page();
    machine.memory.store32((list + offset) as Spa, 1);
    machine.memory.store64((list + offset + 8) as Spa, BigInt(page));
    machine.memory.store32((list + offset + 16) as Spa, 1);
    expect(initEx([0, 4, flags], [8, 8, list + offset])).toBe(0);
    expect(machine.stateOf(page)).toBe('hypervisor');
  });

  it('is INVALID_CONFIG on a machine without SNP', () => {
    machine = new Machine();
    const trace = new Trace();
    const memory = HostMemory.create({ bytes: 1 << 20, trace });
    const entropy = seededEntropy(1);
    const asp = new SecureProcessor({
      memory,
      trace,
      entropy,
      chip: new Chip({ generation: 'milan', entropy }),
    });
    const buffer = ((memory.allocate(0, memory.owner('test')) as number) * 4096) as Spa;
    memory.store32(buffer, 1);
    expect(asp.execute(CMD.INIT_EX, buffer)).toBe(3);
    expect(asp.execute(0x81, 0 as Spa)).toBe(3);
    memory.close();
  });
});

describe('SHUTDOWN_EX', () => {
  it('is fine before SNP is initialised, whatever it says', () => {
    machine = new Machine();
    expect(shutdown(0xff, 3)).toBe(0);
  });

  it('checks in the order of the firmware', () => {
    machine = new Machine();
    initEx([0, 4, 1]);
    expect(shutdown(0, 7)).toBe(0x0f);
    flush();
    expect(shutdown(0, 7)).toBe(0x16);
    expect(shutdown(4)).toBe(0x16);
    expect(shutdown(2)).toBe(0x16);
    const context = machine.startGuest();
    expect(shutdown(1)).toBe(0x0f);
    machine.run(CMD.DECOMMISSION, [[0, 8, context]]);
    expect(shutdown(1)).toBe(0);
    expect(status().state).toBe(0);
  });

  it('keeps the RMP for the next INIT_EX, unless the IOMMU is shut down too', () => {
    machine = new Machine().init();
    expect(shutdown(0)).toBe(0);
    expect(initEx([0, 4, 2])).toBe(0x16);
    expect(initEx([0, 4, 0])).toBe(0);
    flush();
    expect(shutdown(1)).toBe(0);
    expect(initEx([0, 4, 0])).toBe(0x20);
    expect(initEx([0, 4, 1])).toBe(0);
  });

  it('wants the RMP initialised anew when other firmware was committed since', () => {
    machine = new Machine().init();
    shutdown(0);
    const { chip, asp } = machine;
    asp.updateFirmware({ tcb: chip.tcbOf({ snp: 25 }), commit: true });
    expect(initEx([0, 4, 0])).toBe(0x20);
    expect(initEx([0, 4, 1])).toBe(0);
  });

  it('turns the RMP off with the cores', () => {
    machine = new Machine().init();
    const page = machine.firmwarePage();
    expect(shutdown(3)).toBe(0);
    expect(machine.rmp.initialised).toBe(false);
    expect(machine.stateOf(page)).toBe('hypervisor');
  });

  it('forgets guests that were left', () => {
    machine = new Machine().init();
    const context = machine.createContext();
    machine.launchStart(context);
    shutdown(0);
    initEx([0, 4, 0]);
    expect(machine.stateOf(context)).toBe('context');
    expect(machine.launchStart(context)).toBe(0x10);
  });
});

describe('SNP_SHUTDOWN', () => {
  it('checks in the order of the firmware, and keeps the RMP', () => {
    machine = new Machine();
    const down = () => machine.asp.execute(0x82, 0 as Spa);
    expect(down()).toBe(0);
    initEx([0, 4, 1]);
    expect(down()).toBe(0x0f);
    expect(status().state).toBe(1);
    flush();
    const context = machine.startGuest();
    expect(down()).toBe(0x0f);
    machine.run(CMD.DECOMMISSION, [[0, 8, context]]);
    expect(down()).toBe(0);
    expect(status().state).toBe(0);
    expect(machine.rmp.initialised).toBe(true);
    expect(initEx([0, 4, 0])).toBe(0);
  });
});

describe('PLATFORM_STATUS', () => {
  it('checks in the order of the firmware', () => {
    machine = new Machine();
    const ask = (at: number) => machine.run(CMD.PLATFORM_STATUS, [[0, 8, at]]);
    const page = machine.page();
    expect(ask(page + 0xfe1)).toBe(0x16);
    expect(ask(page + 0xfe0)).toBe(0);
    expect(ask(1 << 30)).toBe(9);
    machine.init();
    expect(ask(page)).toBe(0x1a);
    expect(ask(machine.rmp.base)).toBe(0x16);
    expect(ask(machine.firmwarePage())).toBe(0);
  });

  it('tells versions, state, guests and what is configured', () => {
    machine = new Machine();
    const tcb = 0xdb18000000000004n;
    const version = { major: 1, minor: 55, build: 21 };
    expect(status()).toEqual({
      ...version,
      state: 0,
      flags: 0,
      capabilities: 8,
      guests: 0,
      current: tcb,
      reported: tcb,
    });
    machine.init();
    machine.startGuest();
    machine.run(CMD.CONFIG, [
      [0, 8, 0xdb18000000000003n],
      [8, 4, 3],
    ]);
    expect(status()).toEqual({
      ...version,
      state: 1,
      flags: 3,
      capabilities: 8 | 1 | 2,
      guests: 1,
      current: tcb,
      reported: 0xdb18000000000003n,
    });
  });

  it('tells what Turin hides', () => {
    machine = new Machine({ generation: 'turin' });
    expect(status().capabilities).toBe(8 | 32);
    initEx([0, 4, 1 | 4 | 8]);
    expect(status().capabilities).toBe(8 | 16 | 32 | 64);
  });
});
