import { describe, expect, it } from 'vitest';
import { anonymousBackend } from '../../../src/vmm/backends/anonymous.ts';
import { fileBackend } from '../../../src/vmm/backends/file.ts';
import { memfdBackend } from '../../../src/vmm/backends/memfd.ts';
import { KvmState } from '../../../src/vmm/kvm-state.ts';
import { DiscardRequirements } from '../../../src/vmm/memory/discard-requirements.ts';
import { slotFlags } from '../../../src/vmm/memory/kvm-slots.ts';
import { RamList } from '../../../src/vmm/memory/ram-list.ts';
import { RecordingProcess } from '../recording-process.ts';

function setUp() {
  const process = new RecordingProcess();
  const kvm = KvmState.open(process, 1);
  const ramList = new RamList({ process, kvm, discards: new DiscardRequirements() });
  process.calls.length = 0;
  return { process, ramList };
}

const ram = { name: 'ram0', size: 0x10000, sharing: 'shared' as const, guestMemfd: 'none' as const };

describe('a memory backend', () => {
  it.each([
    ['private', {}, 0x0, 0x22],
    ['shared', { sharing: 'shared' as const }, 0x2, 0x21],
    ['without reserve', { reserve: 'none' as const }, 0x80, 0x4022],
    ['with a guest_memfd', { guestMemfd: 'required' as const }, 0x1000, 0x22],
  ])('of anonymous memory, %s, asks for these RAM flags and this mapping', (_, change, flags, mapping) => {
    const { process, ramList } = setUp();
    const region = anonymousBackend({ process, ramList }, { ...ram, sharing: 'private', ...change });
    expect(region.ramBlock).toMatchObject({ flags, idstr: 'ram0' });
    expect(process.of('mmap')).toEqual([`mmap(0x10000, 0x3, 0x${mapping.toString(16)})`]);
    expect(process.of('createGuestMemfd').length).toBe(flags === 0x1000 ? 1 : 0);
  });

  it('of a memfd names it, grows it and maps it', () => {
    const { process, ramList } = setUp();
    const region = memfdBackend({ process, ramList }, { ...ram, guestMemfd: 'required' });
    expect(region.ramBlock?.flags).toBe(0x1002);
    expect(process.calls.map((call) => call.replace(/\((0x[0-9a-f]+), /, '(FD, '))).toEqual([
      'memfdCreate(memory-backend-memfd-ram0)',
      expect.stringMatching(/^fstat/),
      'ftruncate(FD, 0x10000)',
      'mmap(FD, 0x3, 0x1, memfd, 0x0)',
      'createGuestMemfd(FD, 0x0)',
    ]);
  });

  it('of a file opens it by its path, from an offset', () => {
    const { process, ramList } = setUp();
    const region = fileBackend({ process, ramList }, { ...ram, path: '/ram', offset: 0x4000n });
    expect(region).toMatchObject({ kind: 'ram', ramBlock: { flags: 0x202, fdOffset: 0x4000n } });
    expect(process.of('open')).toEqual(['open(/ram)']);
    expect(process.of('ftruncate')[0]).toContain('0x14000');
    expect(process.of('mmap')).toEqual(['mmap(0x10000, 0x3, 0x1, file, 0x4000)']);
  });

  it.each([
    ['shared, is ROM to the guest', 'shared' as const, true, 0xe02, 'mmap(0x10000, 0x1, 0x1, file, 0x0)', 2],
    [
      'private, is RAM whose writes stay in the process',
      'private' as const,
      false,
      0xa00,
      'mmap(0x10000, 0x3, 0x2, file, 0x0)',
      0,
    ],
  ])('of a read-only file, %s', (_, sharing, readOnly, flags, mapping, slot) => {
    const { process, ramList } = setUp();
    const region = fileBackend({ process, ramList }, { ...ram, sharing, path: '/rom', access: 'readonly' });
    expect(region).toMatchObject({ kind: 'ram', readOnly, ramBlock: { flags } });
    expect(process.of('open')).toEqual(['open(/rom, read-only)']);
    expect(process.of('mmap')).toEqual([mapping]);
    expect(slotFlags(region)).toBe(slot);
  });

  it.each([
    ['open', "ram0: can't open backing store /ram for guest RAM: ENOENT"],
    ['fstat', "ram0: can't stat backing store: ENOENT"],
    ['ftruncate', "ram0: can't grow backing store: ENOENT"],
    ['mmap', 'ram0: unable to map backing store for guest RAM: ENOENT'],
    ['createGuestMemfd', 'Error creating KVM guest_memfd: ENOENT'],
  ])('of a file closes it when %s fails', (call, message) => {
    const { process, ramList } = setUp();
    process.fail(call, 'ENOENT');
    const make = () => fileBackend({ process, ramList }, { ...ram, guestMemfd: 'required', path: '/ram' });
    expect(make).toThrow(message);
    expect(process.leaks()).toEqual(['VM', 'KVM']);
  });
});
