import { describe, expect, it } from 'vitest';
import { Trace } from '../../../../src/base/trace.ts';
import { HostMemory } from '../../../../src/hardware/memory/host-memory.ts';
import { type EncryptedGuest, PermissionMaps } from '../../../../src/kernel/kvm/svm/permission-maps.ts';

const MiB = 1048576;

/** Which accesses of an MSR the map intercepts: the byte of 0xc0000080 is 2048 + 32, and so on (APM volume 2, 15.11). */
function intercepted(encrypted: EncryptedGuest | undefined, byte: number, bit: number): string {
  const memory = HostMemory.create({ bytes: MiB, trace: new Trace() });
  const maps = new PermissionMaps(memory, memory.owner('test'));
  maps.apply(undefined, encrypted);
  const map = new Uint8Array(0x2000);
  memory.read((maps.msrs * 4096) as never, map);
  maps.free();
  memory.close();
  return `${(map[byte]! >> bit) & 1 ? 'read' : ''}${(map[byte]! >> (bit + 1)) & 1 ? 'write' : ''}`;
}

describe('the MSR permission map', () => {
  it.each([
    ['EFER', 2048 + 0x20, 0, 'readwrite', ''],
    ['PAT', 0x9d, 6, 'readwrite', ''],
    ['SYSENTER_ESP', 0x5d, 2, 'readwrite', ''],
    ['SYSENTER_EIP', 0x5d, 4, 'readwrite', ''],
    ['SYSENTER_CS', 0x5d, 0, '', ''],
    ['STAR', 2048 + 0x20, 2, '', ''],
    ['GHCB', 4096 + 0x4c, 0, '', ''],
    ['TSC', 0x4, 0, 'write', 'readwrite'],
    ['TSC_AUX', 2048 + 0x40, 6, 'readwrite', 'readwrite'],
    ['APIC_BASE', 0x6, 6, 'readwrite', 'readwrite'],
    ['MTRR_DEF_TYPE', 0xbf, 6, 'readwrite', 'readwrite'],
  ])('of %s differs between plain guests and those with protected state', (_, byte, bit, plain, guarded) => {
    expect(intercepted(undefined, byte, bit)).toBe(plain);
    expect(intercepted({ passesTscAux: false }, byte, bit)).toBe(guarded);
  });

  it('lets a guest at the TSC_AUX of its VMSA', () => {
    expect(intercepted({ passesTscAux: true }, 2048 + 0x40, 6)).toBe('');
  });

  // Both ends of the three ranges, and what lies outside them.
  it.each([
    [0x174, false],
    [0x1fff, true],
    [0x2000, true],
    [0x6174, true],
    [0xc000_0080, true],
    [0xc000_0081, false],
    [0xc000_1fff, true],
    [0xc000_2081, true],
    [0xc001_0130, false],
    [0xc001_1fff, true],
    [0xffff_ffff, true],
  ])('intercepts a write of MSR 0x%i of a plain guest: %s', (msr, expected) => {
    const memory = HostMemory.create({ bytes: MiB, trace: new Trace() });
    const maps = new PermissionMaps(memory, memory.owner('test'));
    expect(maps.interceptsWrite(msr)).toBe(expected);
    maps.free();
    memory.close();
  });
});

it('the maps of a vCPU take nothing where there is room for one of them alone: ENOMEM', () => {
  const memory = HostMemory.create({ bytes: MiB, trace: new Trace() });
  const owner = memory.owner('test');
  // The ports want 4 frames, the MSRs 2.
  const pairs: number[] = [];
  for (let pair = memory.allocate(1, owner); pair >= 0; pair = memory.allocate(1, owner)) pairs.push(pair);
  memory.free(pairs.pop() as never, 1);
  expect(() => new PermissionMaps(memory, owner)).toThrow('ENOMEM');
  expect(memory.allocate(1, owner)).toBeGreaterThanOrEqual(0);
  memory.close();
});
