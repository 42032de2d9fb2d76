/** The ioctl fuzzer's system calls on files and memory. */
import type { Hva } from '../../../src/base/address.ts';
import { GUEST_SNIPPETS } from './fuzz-guest.ts';
import { aSevFd, sevIssueCommand } from './fuzz-sev-commands.ts';
import { type Action, type FuzzSubject, MAX_FILES, PAGE } from './fuzz-subject.ts';

const MAX_MAPPINGS = 12;

export function processCalls(subject: FuzzSubject): Action[] {
  const v = subject.values;
  const { memory } = subject.process;
  const process = subject.process;
  const full = (): boolean => process.files.open().length >= MAX_FILES * 3;
  return [
    [2, () => full() || subject.log.call('openSev', '', () => process.openSev())],
    [
      3,
      () =>
        full() ||
        subject.log.call('memfd_create', '', () => process.memfdCreate('x'.repeat(v.oneIn(9) ? 250 : 3))),
    ],
    [
      2,
      () => {
        const options = { readOnly: v.oneIn(2) };
        if (!full())
          subject.log.call('open', options, () => process.open(v.pick(['/a', '/b', '/']), options));
      },
    ],
    [
      4,
      () =>
        fileCall(subject, 'ftruncate', v.mostly(v.pages(64), v.s64()), (fd, size) =>
          process.ftruncate(fd, size),
        ),
    ],
    [2, () => fileCall(subject, 'fstat', undefined, (fd) => process.fstat(fd))],
    [
      3,
      () =>
        fileCall(subject, 'pread', v.mostly(v.pages(64), v.s64()), (fd, at) =>
          process.pread(fd, v.bytes(v.below(9000)), at),
        ),
    ],
    [
      3,
      () =>
        fileCall(subject, 'pwrite', v.mostly(v.pages(64), v.s64()), (fd, at) =>
          process.pwrite(fd, v.bytes(v.below(9000)), at),
        ),
    ],
    [
      8,
      () => {
        const mode = v.mostly(v.pick([0, 1, 3, 3]), v.u32() | 0);
        const offset = v.mostly(v.pages(64), v.s64());
        const length = v.mostly(v.pages(64), v.s64());
        fileCall(subject, 'fallocate', { mode, offset, length }, (fd) =>
          process.fallocate(fd, mode, offset, length),
        );
      },
    ],
    [
      2,
      () =>
        fileCall(subject, 'lock', v.pick(['shared', 'exclusive', 'none'] as const), (fd, kind) =>
          process.lock(fd, kind),
        ),
    ],
    [
      6,
      () => {
        const fd = aSevFd(subject);
        const command = sevIssueCommand(subject);
        subject.log.call('SEV_ISSUE_CMD', { fd, ...command }, () => process.sevIssueCommand(fd, command));
      },
    ],
    [3, () => closeFile(subject)],
    [
      6,
      () => {
        const good = v.pick([0x21, 0x22, 0x22, 0x01, 0x02, 0x12, 0x32]);
        const request = {
          length: v.number((1 + v.below(64)) * PAGE),
          protection: v.mostly(3, v.below(8)),
          flags: v.mostly(good, v.u32() & ~0x8000),
          fd: subject.ownFd(),
          offset: v.mostly(v.pages(8), v.s64()),
          address: subject.address() as Hva,
        };
        if (!subject.spares(request.address, request.length)) return;
        const at = subject.log.call('mmap', request, () => memory.mmap(request));
        if (at === undefined) return;
        subject.addresses.push(at);
        if (subject.addresses.length > MAX_MAPPINGS) unmap(subject, subject.addresses.shift()!, 64 * PAGE);
      },
    ],
    [2, () => unmap(subject, v.number(subject.address()), v.number(v.below(32) * PAGE))],
    [
      4,
      () => {
        const address = v.number(subject.address()) as Hva;
        const length = v.number(v.below(64) * PAGE);
        const advice = v.mostly(v.pick([4, 9]), v.u32() | 0);
        if (subject.spares(address, length))
          subject.log.call('madvise', { address, length, advice }, () =>
            memory.madvise(address, length, advice),
          );
      },
    ],
    [4, () => memoryCall(subject, 'read', (address, bytes) => memory.read(address, bytes))],
    [12, () => memoryCall(subject, 'write', (address, bytes) => memory.write(address, bytes))],
  ];
}

function unmap(subject: FuzzSubject, address: number, length: number): void {
  if (subject.spares(address, length))
    subject.log.call('munmap', { address, length }, () =>
      subject.process.memory.munmap(address as Hva, length),
    );
}

function memoryCall(
  subject: FuzzSubject,
  name: string,
  act: (address: Hva, bytes: Uint8Array) => void,
): void {
  const v = subject.values;
  const address = v.number(subject.address() + v.below(PAGE * 2)) as Hva;
  const bytes = v.oneIn(3) ? v.bytes(v.below(9000)) : v.pick(GUEST_SNIPPETS);
  if (subject.spares(address, bytes.length))
    subject.log.call(name, { address, bytes: bytes.length }, () => act(address, bytes.slice()));
}

function fileCall<T>(
  subject: FuzzSubject,
  name: string,
  argument: T,
  act: (fd: number, argument: T) => unknown,
): void {
  const fd = subject.ownFd();
  subject.log.call(name, { fd, argument }, () => act(fd, argument));
}

function closeFile(subject: FuzzSubject): void {
  const v = subject.values;
  const open = subject.process.files.open();
  if (open.length < MAX_FILES && !v.oneIn(4)) return;
  fileCall(subject, 'close', undefined, (fd) => {
    const { files } = subject.process;
    const isKvm = files.open().includes(fd) && files.get(fd).operations.name.startsWith('anon_inode');
    if (!isKvm || v.oneIn(20)) subject.process.close(fd);
  });
}
