/** KVM_TRANSLATE: which entries of the guest's page tables lead somewhere. */
import { describe, expect, it } from 'vitest';
import { NotImplementedError } from '../../../src/base/errors.ts';
import { startVm } from './vm-fixture.ts';

const NOWHERE = 0xffff_ffff_ffff_ffffn;
const BASE = 0x20_0000;

/** Four levels of tables at 2 MiB, one a page; the guest's address 0x1234 goes through the first entry of three and the second of the last. */
function walked(
  over: { entries?: (bigint | undefined)[]; efer?: bigint; cr3?: bigint; cr4?: bigint } = {},
): bigint {
  const host = startVm({ type: 0 });
  host.process.memory.mmap({
    address: 0x7000_0020_0000,
    length: 0x1_0000,
    protection: 3,
    flags: 0x32,
  } as never);
  host.setRegion();
  const entries = over.entries ?? [];
  const tables = [0x20_1003n, 0x20_2003n, 0x20_3003n, 0x55_5003n].map(
    (entry, level) => entries[level] ?? entry,
  );
  for (const [level, entry] of tables.entries()) {
    const bytes = new Uint8Array(8);
    new DataView(bytes.buffer).setBigUint64(0, entry, true);
    host.process.memory.write(
      (0x7000_0000_0000 + BASE + level * 0x1000 + (level === 3 ? 8 : 0)) as never,
      bytes,
    );
  }
  host.vcpu.setSregs({
    ...host.vcpu.getSregs(),
    cr0: 0x8000_0011n,
    cr3: over.cr3 ?? 0x20_0000n,
    cr4: over.cr4 ?? 0x20n,
    efer: over.efer ?? 0x500n,
  });
  return host.vcpu.translate(0x1234n).physicalAddress;
}

describe('KVM_TRANSLATE', () => {
  it.each([
    ['by four tables', {}, 0x55_5234n],
    ['by a page of 2 MiB', { entries: [undefined, undefined, 0x4000_0083n] }, 0x4000_1234n],
    ['by a page of 1 GiB', { entries: [undefined, 0x8000_0083n] }, 0x8000_1234n],
    ['PS in the root is reserved', { entries: [0x20_1083n] }, NOWHERE],
    ['PS in the last table is PAT', { entries: [undefined, undefined, undefined, 0x55_5083n] }, 0x55_5234n],
    ['an entry that is not present', { entries: [undefined, 0x20_2002n] }, NOWHERE],
    [
      'an address beyond the guest’s 48 bits',
      { entries: [undefined, undefined, 0x8_0000_0020_3003n] },
      NOWHERE,
    ],
    [
      'NX without EFER.NXE',
      { entries: [undefined, undefined, undefined, (1n << 63n) | 0x55_5003n] },
      NOWHERE,
    ],
    [
      'NX with EFER.NXE',
      { entries: [undefined, undefined, undefined, (1n << 63n) | 0x55_5003n], efer: 0xd00n },
      0x55_5234n,
    ],
    ['a table where no memory is', { cr3: 0x90_0000n }, NOWHERE],
    ['a table that the process has not mapped', { entries: [0x2f_0003n] }, NOWHERE],
  ])('%s', (_, over, want) => {
    expect(walked(over)).toBe(want);
  });

  it('through a page that comes later is not implemented, and says so', () => {
    const host = startVm({ type: 0 });
    const fd = host.createFile(0x1_0000n, 3n);
    host.file(fd).fillWith(() => new Promise(() => {}));
    const at = host.process.memory.mmap({ length: 0x1_0000, protection: 3, flags: 1, fd, offset: 0n });
    host.setRegion({ userspaceAddr: BigInt(at) });
    const sregs = host.vcpu.getSregs();
    host.vcpu.setSregs({ ...sregs, cr0: 0x8000_0011n, cr3: 0x20_0000n, cr4: 0x20n, efer: 0x500n });
    expect(() => host.vcpu.translate(0x1234n)).toThrow(NotImplementedError);
  });

  it('reads tables in memory that the process itself may only read', () => {
    const host = startVm({ type: 0 });
    const fd = host.process.memfdCreate('tables');
    host.process.ftruncate(fd, 0x1_0000n);
    const map = (protection: number) =>
      host.process.memory.mmap({ length: 0x1_0000, protection, flags: 1, fd, offset: 0n });
    const writable = map(3);
    for (const [level, entry] of [0x20_1003n, 0x20_2003n, 0x8000_0083n].entries()) {
      const bytes = new Uint8Array(8);
      new DataView(bytes.buffer).setBigUint64(0, entry, true);
      host.process.memory.write((writable + level * 0x1000) as never, bytes);
    }
    host.setRegion({ userspaceAddr: BigInt(map(1)) });
    const sregs = host.vcpu.getSregs();
    host.vcpu.setSregs({ ...sregs, cr0: 0x8000_0011n, cr3: 0x20_0000n, cr4: 0x20n, efer: 0x500n });
    expect(host.vcpu.translate(0x1234n).physicalAddress).toBe(0x8000_1234n);
    expect(host.touch(0x20_0000)).toBe(-14);
  });

  it('outside of long mode is not implemented, and says so', () => {
    expect(() => walked({ efer: 0n })).toThrow(NotImplementedError);
  });
});
