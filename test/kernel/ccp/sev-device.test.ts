/** /dev/sev as a table (reference facts 6.2): who may what, in which order, and what firmware's answers come to. */
import { afterEach, describe, expect, it } from 'vitest';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { Chip, wrapVlek } from '../../../src/hardware/chip.ts';
import type { SevIssueCommand } from '../../../src/kernel/interface.ts';
import { createKernel, type Kernel } from '../../../src/kernel/kvm/index.ts';
import type { Process } from '../../../src/kernel/process.ts';
import { errnoOf, expectAllBack } from '../kvm/snp-rules.ts';

const EPERM = 1;
const EIO = 5;
const EBADF = 9;
const ENOMEM = 12;
const EFAULT = 14;
const EBUSY = 16;
const EINVAL = 22;
const ENODEV = 19;
const ENOTTY = 25;
const ETIMEDOUT = 110;

let kernel: Kernel | undefined;
afterEach(() => {
  kernel?.close();
  kernel = undefined;
});

function machine(): { kernel: Kernel; process: Process; chip: Chip; fd: number; readOnly: number } {
  const chip = new Chip({ generation: 'milan', entropy: seededEntropy(3) });
  kernel = createKernel({ memory: 8 << 20, chip, entropy: seededEntropy(5) });
  const process = kernel.newProcess('owner');
  return { kernel, process, chip, fd: process.openSev(), readOnly: process.openSev({ readOnly: true }) };
}

describe('SEV_ISSUE_CMD', () => {
  // cmd, data; errno of a descriptor for reading, of one for writing; firmware's status then.
  const ROWS: readonly (readonly [string, number, number | undefined, number, number, number])[] = [
    ['FACTORY_RESET, which this firmware lacks', 0, undefined, EPERM, EIO, 0x11],
    ['PLATFORM_STATUS', 1, 12, 0, 0, 0],
    ['PLATFORM_STATUS without data', 1, undefined, EFAULT, EFAULT, 0],
    ['PEK_GEN', 2, undefined, EPERM, EIO, 0x11],
    ['PEK_CSR', 3, 16, EPERM, EIO, 0x11],
    ['PDH_GEN', 4, undefined, EPERM, EIO, 0x11],
    ['PDH_CERT_EXPORT', 5, 32, EPERM, EIO, 0x11],
    ['PEK_CERT_IMPORT', 6, 32, EPERM, EIO, 0x11],
    ['GET_ID', 7, 128, 0, 0, 0],
    ['GET_ID2 without data', 8, undefined, EFAULT, EFAULT, 0],
    ['SNP_PLATFORM_STATUS', 9, 32, 0, 0, 0],
    ['SNP_PLATFORM_STATUS without data', 9, undefined, EINVAL, EINVAL, 0],
    ['SNP_PLATFORM_STATUS with too little room', 9, 31, EFAULT, EFAULT, 0],
    ['SNP_COMMIT', 10, undefined, 0, 0, 0],
    ['SNP_SET_CONFIG', 11, 64, EPERM, 0, 0],
    ['SNP_SET_CONFIG without data', 11, undefined, EINVAL, EINVAL, 0],
    ['SNP_SET_CONFIG with too little', 11, 63, EPERM, EFAULT, 0],
    ['SNP_VLEK_LOAD without data', 12, undefined, EINVAL, EINVAL, 0],
    ['SNP_VLEK_LOAD of length 0', 12, 16, EPERM, EINVAL, 0],
    ['a command that nobody has', 13, 64, EINVAL, EINVAL, 0],
    ['the last number', 0xffff_ffff, 64, EINVAL, EINVAL, 0],
  ];
  for (const [name, cmd, size, reader, writer, status] of ROWS)
    it(name, () => {
      const { process, fd, readOnly } = machine();
      const command = (): SevIssueCommand => ({
        cmd,
        ...(size !== undefined && { data: new Uint8Array(size) }),
      });
      expect(errnoOf(() => process.sevIssueCommand(readOnly, command()))).toBe(reader);
      const asked = command();
      expect(errnoOf(() => process.sevIssueCommand(fd, asked))).toBe(writer);
      expect(asked.error ?? 0).toBe(status);
      process.exit();
      expectAllBack(kernel!);
    });

  it('is for descriptors of /dev/sev, where there is one', () => {
    const { process } = machine();
    expect(errnoOf(() => process.sevIssueCommand(99, { cmd: 9 }))).toBe(EBADF);
    expect(errnoOf(() => process.sevIssueCommand(process.memfdCreate('x'), { cmd: 9 }))).toBe(ENOTTY);
    const plain = createKernel({ memory: 4 << 20 });
    expect(errnoOf(() => plain.newProcess().openSev())).toBe(ENODEV);
    plain.close();
  });

  it('is ENODEV without a secure processor, whatever else is wrong', () => {
    const { process, fd, readOnly, kernel } = machine();
    kernel.psp!.shutDown();
    for (let cmd = 0; cmd <= 13; cmd++)
      for (const descriptor of [fd, readOnly])
        expect(errnoOf(() => process.sevIssueCommand(descriptor, { cmd }))).toBe(ENODEV);
  });

  it('GET_ID is EFAULT where the page of the ids cannot be had back', () => {
    const { process, fd, kernel } = machine();
    // The first is the page of the command itself.
    kernel.secureProcessor!.inject({ command: 0xc7, nth: 2, status: 0x1a });
    const issued: SevIssueCommand = { cmd: 7, data: new Uint8Array(128), error: 0x77 };
    expect([errnoOf(() => process.sevIssueCommand(fd, issued)), issued.error]).toEqual([EFAULT, 0]);
    expect(kernel.psp!.leakedPages).toBe(1);
  });

  // The first command that is left unanswered, whose `error` becomes 0, and one that follows: its errno. That leaves `error` as it is.
  it.each([
    ['PLATFORM_STATUS', 1, 0x04, 12, EBUSY],
    ['GET_ID', 7, 0x0c, 128, EBUSY],
    ['SNP_PLATFORM_STATUS', 9, 0x83, 32, EFAULT],
    ['SNP_COMMIT', 10, 0xcb, 0, EBUSY],
    ['SNP_SET_CONFIG', 11, 0xc9, 64, EBUSY],
  ])(
    '%s that is left unanswered has a driver’s errno, and so has what follows',
    (_, cmd, command, size, later) => {
      const { process, fd, kernel } = machine();
      kernel.secureProcessor!.inject({ command, nth: 1, status: -1 });
      const issued: SevIssueCommand = { cmd, data: new Uint8Array(size), error: 0x77 };
      const first = cmd === 9 ? EFAULT : ETIMEDOUT;
      expect([errnoOf(() => process.sevIssueCommand(fd, issued)), issued.error]).toEqual([first, 0]);
      issued.error = 0x77;
      expect([errnoOf(() => process.sevIssueCommand(fd, issued)), issued.error]).toEqual([later, 0x77]);
    },
  );

  it('PLATFORM_STATUS has versions, state UNINIT and no guests', () => {
    const { process, readOnly, chip } = machine();
    const data = new Uint8Array(12);
    process.sevIssueCommand(readOnly, { cmd: 1, data });
    const { major, minor, build } = chip.firmware;
    expect([...data]).toEqual([major, minor, 0, 0, 0, 0, 0, build, 0, 0, 0, 0]);
  });

  it('SNP_PLATFORM_STATUS has versions, state INIT, and how many guests there are', () => {
    const { process, readOnly, chip, fd } = machine();
    const vm = process.openKvm().createVm(4);
    vm.memoryEncryptOp({ id: 22, sevFd: fd, data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 0 } });
    vm.memoryEncryptOp({
      id: 100,
      sevFd: fd,
      data: { policy: 0x30000n, gosvw: new Uint8Array(16), flags: 0 },
    });
    const data = new Uint8Array(32);
    process.sevIssueCommand(readOnly, { cmd: 9, data });
    const view = new DataView(data.buffer);
    expect([data[0], data[1], data[2], data[3]]).toEqual([chip.firmware.major, chip.firmware.minor, 1, 3]);
    expect(view.getUint32(0xc, true)).toBe(1);
    expect([view.getBigUint64(0x10, true), view.getBigUint64(0x18, true)]).toEqual([
      chip.currentTcb,
      chip.reportedTcb,
    ]);
  });

  it('GET_ID2 says how long an id is where the room is short, and gives the chip’s', () => {
    const { process, readOnly, chip } = machine();
    const ask = (address: bigint, length: number) => {
      const data = new Uint8Array(12);
      const view = new DataView(data.buffer);
      view.setBigUint64(0, address, true);
      view.setUint32(8, length, true);
      const command: SevIssueCommand = { cmd: 8, data, blob: new Uint8Array(length) };
      const errno = errnoOf(() => process.sevIssueCommand(readOnly, command));
      return { errno, error: command.error, needed: view.getUint32(8, true), blob: command.blob! };
    };
    expect(ask(0n, 0)).toMatchObject({ errno: EIO, error: 0x04, needed: 64 });
    expect(ask(0n, 128)).toMatchObject({ errno: EIO, error: 0x04, needed: 64 });
    expect(ask(0x1000n, 63)).toMatchObject({ errno: EIO, error: 0x04, needed: 64, blob: new Uint8Array(63) });
    for (const blob of [undefined, new Uint8Array(63)]) {
      const data = new Uint8Array(12);
      data[0] = 1;
      data[8] = 64;
      const short = { cmd: 8, data, ...(blob !== undefined && { blob }) };
      expect(errnoOf(() => process.sevIssueCommand(readOnly, short))).toBe(EFAULT);
    }
    const exact = ask(0x1000n, 64);
    expect(exact).toMatchObject({ errno: 0, error: 0, needed: 64 });
    const full = ask(0x1000n, 128);
    expect(full).toMatchObject({ errno: 0, error: 0, needed: 64 });
    expect(full.blob.subarray(0, 64)).toEqual(chip.chipId);
  });

  it.each([
    ['no bytes', undefined, EFAULT],
    ['63 bytes', 63, EFAULT],
    ['64 bytes', 64, 0],
  ])('GET_ID2 with room for two ids, and %s at its address', (_, bytes, errno) => {
    const { process, readOnly } = machine();
    const data = new Uint8Array(12);
    new DataView(data.buffer).setBigUint64(0, 0x1000n, true);
    new DataView(data.buffer).setUint32(8, 128, true);
    const blob = bytes === undefined ? {} : { blob: new Uint8Array(bytes) };
    expect(errnoOf(() => process.sevIssueCommand(readOnly, { cmd: 8, data, ...blob }))).toBe(errno);
  });

  it.each([
    ['PLATFORM_STATUS', 1, 12],
    ['GET_ID', 7, 128],
    ['SNP_PLATFORM_STATUS', 9, 32],
  ])('%s on a host without a free frame: ENOMEM', (_, cmd, size) => {
    const { process, readOnly, kernel } = machine();
    const { memory } = kernel;
    const owner = memory.owner('test');
    const taken = [];
    for (let frame = memory.allocate(0, owner); frame >= 0; frame = memory.allocate(0, owner))
      taken.push(frame);
    const command: SevIssueCommand = { cmd, data: new Uint8Array(size) };
    expect(errnoOf(() => process.sevIssueCommand(readOnly, command))).toBe(ENOMEM);
    expect(command.error).toBeUndefined();
    for (const frame of taken) memory.free(frame as never, 0);
    expect(errnoOf(() => process.sevIssueCommand(readOnly, command))).toBe(0);
  });

  it('SNP_SET_CONFIG changes the reported TCB within what is committed, SNP_COMMIT what is committed', () => {
    const { process, fd, chip } = machine();
    const data = new Uint8Array(64);
    const view = new DataView(data.buffer);
    const higher = chip.tcbOf({ snp: 0x30 });
    const set = (tcb: bigint): number => {
      view.setBigUint64(0, tcb, true);
      const command: SevIssueCommand = { cmd: 11, data };
      const errno = errnoOf(() => process.sevIssueCommand(fd, command));
      return errno === 0 ? 0 : command.error!;
    };
    expect(set(higher)).toBe(0x16);
    kernel!.secureProcessor!.updateFirmware({ tcb: higher });
    expect(set(higher)).toBe(0x16);
    process.sevIssueCommand(fd, { cmd: 10 });
    expect(set(higher)).toBe(0);
    expect(chip.reportedTcb).toBe(higher);
    data[12] = 1;
    expect(set(higher)).toBe(0x16);
    data[12] = 0;
    view.setUint32(8, 4, true);
    expect(set(higher)).toBe(0x16);
  });

  it('SNP_VLEK_LOAD takes a wrapped VLEK for the reported TCB, of this chip', () => {
    const { process, fd, chip, kernel } = machine();
    const random = (bytes: number) => Uint8Array.from({ length: bytes }, (_, i) => (i * 7 + 1) & 0xff);
    const wrapped = (tcb: bigint) =>
      wrapVlek({
        sticks: random(384),
        wrappingKey: chip.vlekWrappingKey(tcb),
        iv: random(12),
        tcb,
      });
    const load = (blob: Uint8Array | undefined, length = 16, version = 0): [number, number | undefined] => {
      const data = new Uint8Array(16);
      new DataView(data.buffer).setUint32(0, length, true);
      data[4] = version;
      data[8] = 1;
      const command: SevIssueCommand = { cmd: 12, data, ...(blob !== undefined && { blob }) };
      return [errnoOf(() => process.sevIssueCommand(fd, command)), command.error];
    };
    const good = wrapped(chip.reportedTcb);
    expect(load(good, 15)).toEqual([EINVAL, undefined]);
    expect(load(good, 16, 1)).toEqual([EINVAL, undefined]);
    expect(load(undefined)).toEqual([EFAULT, undefined]);
    expect(load(good.subarray(0, 431))).toEqual([EFAULT, undefined]);
    expect(load(wrapped(chip.tcbOf({ snp: 1 })))).toEqual([EIO, 0x21]);
    const torn = good.slice();
    torn[0x20]! ^= 1;
    expect(load(torn)).toEqual([EIO, 0x0b]);
    expect(load(good)).toEqual([0, 0]);
    const status = new Uint8Array(32);
    process.sevIssueCommand(fd, { cmd: 9, data: status });
    expect(status[8]! & 4).toBe(4);
    expect(kernel.psp!.leakedPages).toBe(0);
  });

  it('has firmware’s failures as EIO, and gets its pages back', () => {
    const { process, fd, kernel } = machine();
    for (const [cmd, command, size] of [
      [1, 0x04, 12],
      [7, 0x0c, 128],
      [9, 0x83, 32],
      [10, 0xcb, 0],
      [11, 0xc9, 64],
    ] as const) {
      kernel.secureProcessor!.inject({ command, nth: 1, status: 0x13 });
      const issued: SevIssueCommand = { cmd, data: new Uint8Array(size) };
      expect(errnoOf(() => process.sevIssueCommand(fd, issued))).toBe(EIO);
      expect(issued.error).toBe(0x13);
    }
    process.exit();
    expectAllBack(kernel);
  });
});
