import { describe, expect, it } from 'vitest';
import { KvmState } from '../../../src/vmm/kvm-state.ts';
import { discardGuestMemfdRange, discardRange } from '../../../src/vmm/memory/discard.ts';
import { DiscardRequirements } from '../../../src/vmm/memory/discard-requirements.ts';
import type { RamBlock } from '../../../src/vmm/memory/ram-block.ts';
import { RamList } from '../../../src/vmm/memory/ram-list.ts';
import { RecordingProcess } from '../recording-process.ts';

const region = { name: 'pc.ram' };

function setUp(make: (list: RamList, process: RecordingProcess) => RamBlock) {
  const process = new RecordingProcess();
  const list = new RamList({ process, kvm: KvmState.open(process, 1), discards: new DiscardRequirements() });
  const block = make(list, process);
  process.calls.length = 0;
  const reports: string[] = [];
  const context = { process, report: (message: string) => reports.push(message) };
  return { process, block, reports, context };
}

const plain = (flags: number) => (list: RamList) => list.alloc({ region, size: 0x400000, flags });
const withFile =
  (flags: number, options: { offset?: bigint; pageSize?: number } = {}) =>
  (list: RamList, process: RecordingProcess) =>
    list.allocFromFd({ region, size: 0x400000, flags, fd: process.memfdCreate('x'), ...options });

describe('ram_block_discard_range', () => {
  it.each([
    ['a start within a page', 0x800, 0x1000, -1, 'unaligned start address'],
    ['a length within a page', 0x1000, 0x800, -1, 'unaligned length'],
    ['an end beyond max_length', 0x3ff000, 0x2000, -1, 'overrun'],
    ['a start below the block', -0x1000, 0x1000, -1, 'overrun'],
  ])('refuses %s with −1 and calls nothing', (_, start, length, result, message) => {
    const { process, block, reports, context } = setUp(plain(0));
    expect(discardRange(context, block, start, length)).toBe(result);
    expect(reports.join()).toContain(message);
    expect(process.calls).toEqual([]);
  });

  it.each([
    ['anonymous, private: MADV_DONTNEED', plain(0), ['madvise(0x1000, 0x2000, 0x4)']],
    ['anonymous, shared: MADV_REMOVE', plain(2), ['madvise(0x1000, 0x2000, 0x9)']],
    [
      'a shared file: PUNCH_HOLE|KEEP_SIZE, then MADV_DONTNEED',
      withFile(2),
      ['fallocate(memfd, 0x3, 0x1000, 0x2000)', 'madvise(0x1000, 0x2000, 0x4)'],
    ],
    [
      'a private file mapping: the same',
      withFile(0),
      ['fallocate(memfd, 0x3, 0x1000, 0x2000)', 'madvise(0x1000, 0x2000, 0x4)'],
    ],
    [
      'a file from an offset: fd_offset is added for the file, not for the mapping',
      withFile(2, { offset: 0x10000n }),
      ['fallocate(memfd, 0x3, 0x11000, 0x2000)', 'madvise(0x1000, 0x2000, 0x4)'],
    ],
  ])('%s', (_, make, calls) => {
    const { process, block, context } = setUp(make);
    expect(discardRange(context, block, 0x1000, 0x2000)).toBe(0);
    expect(process.calls).toEqual(calls);
  });

  it('a file of huge pages wants whole huge pages and is punched alone', () => {
    const { process, block, context } = setUp(withFile(2, { pageSize: 0x200000 }));
    expect(discardRange(context, block, 0x1000, 0x200000)).toBe(-1);
    expect(discardRange(context, block, 0x200000, 0x1000)).toBe(-1);
    expect(discardRange(context, block, 0x200000, 0x200000)).toBe(0);
    expect(process.calls).toEqual(['fallocate(memfd, 0x3, 0x200000, 0x200000)']);
  });

  it('huge pages without a file can be discarded by neither call', () => {
    const { process, block, context } = setUp(plain(0));
    expect(discardRange(context, { ...block, pageSize: 0x200000 }, 0, 0x200000)).toBe(-1);
    expect(process.calls).toEqual([]);
  });

  it('a file that is open for reading cannot be discarded', () => {
    const { process, block, reports, context } = setUp(withFile(0x800));
    expect(discardRange(context, block, 0, 0x1000)).toBe(-1);
    expect(reports.join()).toContain('readonly files');
    expect(process.calls).toEqual([]);
  });

  it('memory without a file has none that could be open for reading', () => {
    const { process, block, context } = setUp(plain(0));
    expect(discardRange(context, { ...block, flags: 0x800 }, 0, 0x1000)).toBe(0);
    expect(process.calls).toEqual(['madvise(0x0, 0x1000, 0x4)']);
  });

  it('a block without host memory any more has nothing to discard', () => {
    const { process, block, context } = setUp(plain(0));
    expect(discardRange(context, { ...block, host: undefined }, 0, 0x1000)).toBe(-1);
    expect(process.calls).toEqual([]);
  });

  it('gives the errno of the call that failed, and does not go on after it', () => {
    const { process, block, context } = setUp(withFile(2));
    process.fail('fallocate', 'EINTR');
    expect(discardRange(context, block, 0, 0x1000)).toBe(-4);
    expect(process.of('madvise')).toEqual([]);
    process.fail('madvise', 'EINVAL');
    expect(discardRange(context, block, 0, 0x1000)).toBe(-22);
  });
});

describe('ram_block_discard_guest_memfd_range', () => {
  it('punches the guest_memfd at the start itself: fd_offset does not count there', () => {
    const { process, block, context } = setUp(withFile(0x1002, { offset: 0x10000n }));
    expect(discardGuestMemfdRange(context, block, 0x1000, 0x2000)).toBe(0);
    expect(process.calls).toEqual(['fallocate(guest_memfd, 0x3, 0x1000, 0x2000)']);
  });

  it('gives −errno of the punch, and −ENOSYS without a guest_memfd', () => {
    const { process, block, context } = setUp(plain(0x1000));
    process.fail('fallocate', 'EINVAL');
    expect(discardGuestMemfdRange(context, block, 0, 0x1000)).toBe(-22);
    const { block: without, context: other } = setUp(plain(0));
    expect(discardGuestMemfdRange(other, without, 0, 0x1000)).toBe(-38);
  });
});
