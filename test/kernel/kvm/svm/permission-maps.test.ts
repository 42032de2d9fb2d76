import { describe, expect, it } from 'vitest';
import { Trace } from '../../../../src/base/trace.ts';
import { HostMemory } from '../../../../src/hardware/memory/host-memory.ts';
import { PermissionMaps } from '../../../../src/kernel/kvm/svm/permission-maps.ts';

const MiB = 1048576;

/** Which accesses of an MSR the map intercepts: the byte of 0xc0000080 is 2048 + 32, and so on (APM volume 2, 15.11). */
function intercepted(state: 'plain' | 'protected', byte: number, bit: number): string {
  const memory = HostMemory.create({ bytes: MiB, trace: new Trace() });
  const maps = new PermissionMaps(memory, memory.owner('test'));
  maps.apply(undefined, state);
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
    ['TSC', 0x4, 0, 'write', 'write'],
    ['APIC_BASE', 0x6, 6, 'readwrite', 'readwrite'],
    ['MTRR_DEF_TYPE', 0xbf, 6, 'readwrite', 'readwrite'],
  ])('of %s differs between plain guests and those with protected state', (_, byte, bit, plain, guarded) => {
    expect(intercepted('plain', byte, bit)).toBe(plain);
    expect(intercepted('protected', byte, bit)).toBe(guarded);
  });
});
