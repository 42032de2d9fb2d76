/** The VMM's process on the real Linux: what system calls do, and what must not harm the Node around them. Needs koffi; vCPUs need /dev/kvm. */
import { accessSync, constants, mkdtempSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, it } from 'vitest';
import type { Hva } from '../../src/base/address.ts';
import { LinuxError } from '../../src/base/errors.ts';
import { LinuxProcess } from '../../src/linux/process.ts';

function there(check: () => void): boolean {
  try {
    check();
    return true;
  } catch {
    return false;
  }
}
const koffi = there(() => createRequire(import.meta.url).resolve('koffi'));
const kvm = koffi && there(() => accessSync('/dev/kvm', constants.R_OK | constants.W_OK));
if (!koffi) console.log('skipped: koffi is not installed');
if (koffi && !kvm) console.log('skipped: no access to /dev/kvm');

const started: LinuxProcess[] = [];
afterEach(() => {
  for (const process of started.splice(0)) process.exit();
});

function start(options?: { timesliceMs?: number }): LinuxProcess {
  const process = new LinuxProcess(options);
  started.push(process);
  return process;
}

function failure(call: () => unknown): string {
  try {
    call();
  } catch (error) {
    if (error instanceof LinuxError) return error.signal ? `${error.code}/${error.signal}` : error.code;
    throw error;
  }
  return 'OK';
}

const bytesAt = (process: LinuxProcess, address: number, length: number): number[] => {
  const bytes = new Uint8Array(length);
  process.memory.read(address as Hva, bytes);
  return [...bytes];
};

describe.skipIf(!koffi)('memory', () => {
  it('is zero when fresh and keeps what is written', () => {
    const process = start();
    const at = process.memory.mmap({ length: 0x3000, protection: 3, flags: 0x22 });
    process.memory.write((at + 0xffe) as Hva, Uint8Array.of(1, 2, 3, 4));
    expect(bytesAt(process, at + 0xffd, 6)).toEqual([0, 1, 2, 3, 4, 0]);
    process.memory.madvise(at, 0x1000, 4);
    expect(bytesAt(process, at + 0xffd, 6)).toEqual([0, 0, 0, 3, 4, 0]);
  });

  it('of more than 4 GiB is had without being used', () => {
    const process = start();
    const at = process.memory.mmap({ length: 64 * 2 ** 30, protection: 3, flags: 0x4022 });
    process.memory.write((at + 63 * 2 ** 30) as Hva, Uint8Array.of(9));
    expect(bytesAt(process, at + 63 * 2 ** 30, 2)).toEqual([9, 0]);
  });

  it('that may not be accessed is an error, not the end of Node', () => {
    const process = start();
    const none = process.memory.mmap({ length: 0x1000, protection: 0, flags: 0x22 });
    const readOnly = process.memory.mmap({ length: 0x1000, protection: 1, flags: 0x22 });
    const fd = process.memfdCreate('short');
    const beyond = process.memory.mmap({ length: 0x1000, protection: 3, flags: 1, fd });
    expect(failure(() => bytesAt(process, none, 1))).toBe('EFAULT/SIGSEGV');
    expect(failure(() => process.memory.write(readOnly, new Uint8Array(1)))).toBe('EFAULT/SIGSEGV');
    expect(failure(() => bytesAt(process, beyond, 1))).toBe('EFAULT/SIGBUS');
    process.memory.munmap(none, 0x1000);
    expect(failure(() => bytesAt(process, none, 1))).toBe('EFAULT/SIGSEGV');
  });

  it('that is not the VMM’s stays as it is', () => {
    const process = start();
    const other = start();
    const foreign = other.memory.mmap({ length: 0x2000, protection: 3, flags: 0x22 });
    other.memory.write(foreign, Uint8Array.of(5));
    expect(failure(() => process.memory.write(foreign, Uint8Array.of(6)))).toBe('EFAULT/SIGSEGV');
    expect(failure(() => process.memory.madvise(foreign, 0x1000, 4))).toBe('ENOMEM');
    expect(
      failure(() => process.memory.mmap({ length: 0x1000, protection: 3, flags: 0x32, address: foreign })),
    ).toBe('EEXIST');
    process.memory.munmap(foreign, 0x1000);
    expect(bytesAt(other, foreign, 1)).toEqual([5]);
  });

  it('may be mapped over what the VMM mapped before', () => {
    const process = start();
    const at = process.memory.mmap({ length: 0x3000, protection: 3, flags: 0x22 });
    process.memory.write((at + 0x1000) as Hva, Uint8Array.of(1));
    const middle = (at + 0x1000) as Hva;
    expect(process.memory.mmap({ length: 0x1000, protection: 3, flags: 0x32, address: middle })).toBe(middle);
    expect(bytesAt(process, middle, 1)).toEqual([0]);
  });
});

describe.skipIf(!koffi)('files', () => {
  it('of shared memory are seen through descriptor and mapping', () => {
    const process = start();
    const fd = process.memfdCreate('ram');
    process.ftruncate(fd, 0x3000n);
    expect(process.fstat(fd)).toEqual({ size: 0x3000n, blockSize: 4096 });
    const at = process.memory.mmap({ length: 0x2000, protection: 3, flags: 1, fd, offset: 0x1000n });
    expect(process.pwrite(fd, Uint8Array.of(7, 8), 0x1fffn)).toBe(2);
    expect(bytesAt(process, at + 0xfff, 2)).toEqual([7, 8]);
    process.fallocate(fd, 3, 0x1000n, 0x1000n);
    const bytes = new Uint8Array(3);
    expect(process.pread(fd, bytes, 0x1fffn)).toBe(3);
    expect([...bytes]).toEqual([0, 8, 0]);
    expect(failure(() => process.fallocate(fd, 3, 0n, 0n))).toBe('EINVAL');
  });

  it('of the host are opened for writing, or read only when they are there', () => {
    const folder = mkdtempSync(join(tmpdir(), 'softcvm-linux-'));
    try {
      const process = start();
      const path = join(folder, 'ram');
      expect(failure(() => process.open(path, { readOnly: true }))).toBe('ENOENT');
      const fd = process.open(path);
      process.pwrite(fd, Uint8Array.of(1, 2), 0n);
      const again = process.open(path, { readOnly: true });
      expect(process.fstat(again).size).toBe(2n);
      expect(failure(() => process.pwrite(again, Uint8Array.of(3), 0n))).toBe('EBADF');
    } finally {
      rmSync(folder, { recursive: true });
    }
  });

  it('that the VMM did not open are not there for it', () => {
    const process = start();
    expect(failure(() => process.sevIssueCommand(1, { cmd: 10 }))).toBe('EBADF');
    expect(failure(() => process.close(1))).toBe('EBADF');
    expect(failure(() => process.pwrite(2, Uint8Array.of(0x21), 0n))).toBe('EBADF');
    const fd = process.memfdCreate('once');
    const data = new Uint8Array(32);
    expect(failure(() => process.sevIssueCommand(fd, { cmd: 9, data }))).toBe('ENOTTY');
    process.close(fd);
    expect(failure(() => process.close(fd))).toBe('EBADF');
  });
});

describe.skipIf(!kvm)('vCPUs', () => {
  /** `jmp` to itself at the reset vector, in real mode. */
  function spinning(process: LinuxProcess, id = 0) {
    const kvm = process.openKvm();
    const vm = kvm.createVm(0);
    const ram = process.memory.mmap({ length: 0x1000, protection: 3, flags: 0x22 });
    process.memory.write((ram + 0xff0) as Hva, Uint8Array.of(0xeb, 0xfe));
    vm.setUserMemoryRegion({
      ...{ slot: 0, flags: 0, guestPhysAddr: 0xffff_f000n, memorySize: 0x1000n, userspaceAddr: BigInt(ram) },
    });
    return vm.createVcpu(id);
  }

  it('are interrupted after their timeslice, each time', () => {
    const vcpu = spinning(start({ timesliceMs: 5 }));
    const begin = performance.now();
    for (let i = 0; i < 20; i++) expect(vcpu.run()).toBe(-4);
    const took = performance.now() - begin;
    expect(took).toBeGreaterThan(50);
    expect(took).toBeLessThan(5000);
  });

  it('take turns when there are several', () => {
    const process = start({ timesliceMs: 2 });
    const vcpus = [spinning(process), spinning(process)];
    for (let i = 0; i < 10; i++) for (const vcpu of vcpus) expect(vcpu.run()).toBe(-4);
  });

  it('that were closed answer, and their kvm_run reads 0', () => {
    const process = start();
    const vcpu = spinning(process);
    vcpu.run();
    vcpu.close();
    vcpu.close();
    expect(vcpu.run()).toBe(-9);
    expect(failure(() => vcpu.getRegs())).toBe('EBADF');
    expect(vcpu.kvmRun.exitReason).toBe(0);
    vcpu.kvmRun.immediateExit = 1;
    expect(vcpu.instructions).toBeNaN();
  });

  it('that were closed before they ever ran do not run', () => {
    const vcpu = spinning(start({ timesliceMs: 5 }));
    vcpu.close();
    expect(vcpu.run()).toBe(-9);
  });

  it('of a type of VM that the kernel lacks cannot be', () => {
    const device = start().openKvm();
    expect(() => device.createVm(30)).toThrow(
      /^EINVAL: KVM_CREATE_VM: this kernel has no VM type 30 \(KVM_CAP_VM_TYPES is 0x/,
    );
  });

  it('have the CPUID that they were given', () => {
    const process = start();
    const vcpu = spinning(process);
    const supported = process.openKvm().getSupportedCpuid();
    vcpu.setCpuid2(supported);
    const leaf0 = (entries: typeof supported) => entries.find((entry) => entry.function === 0);
    expect(leaf0(vcpu.getCpuid2())).toEqual(leaf0(supported));
    expect(vcpu.getCpuid2()).toHaveLength(supported.length);
  });

  it('have no dirty rings, and who asks for them hears so', () => {
    const process = start();
    const vm = process.openKvm().createVm(0);
    for (const cap of [192, 223]) {
      expect(() => vm.enableCap({ cap, args: [4096n] })).toThrow(
        'not implemented: dirty rings of the real KVM',
      );
    }
    expect(vm.createVcpu(0).dirtyRing).toBeUndefined();
  });

  it('have a dirty bitmap only where there is room for it', () => {
    const process = start();
    const vm = process.openKvm().createVm(0);
    const ram = process.memory.mmap({ length: 65 * 0x1000, protection: 3, flags: 0x22 });
    vm.setUserMemoryRegion({
      ...{ slot: 3, flags: 1, guestPhysAddr: 0n, memorySize: 0x41000n, userspaceAddr: BigInt(ram) },
    });
    expect(failure(() => vm.getDirtyLog({ slot: 3, bitmap: new Int32Array(2) }))).toBe('EFAULT');
    const bitmap = new Int32Array(4).fill(-1);
    vm.getDirtyLog({ slot: 3, bitmap });
    expect([...bitmap]).toEqual([0, 0, 0, 0]);
    expect(failure(() => vm.getDirtyLog({ slot: 4, bitmap }))).toBe('ENOENT');
  });

  it.each([Number.NaN, 2 ** 32])('have no slot %s, which would be another slot of another size', (slot) => {
    const process = start();
    const vm = process.openKvm().createVm(0);
    const ram = process.memory.mmap({ length: 65 * 0x1000, protection: 3, flags: 0x22 });
    const region = { slot, flags: 1, guestPhysAddr: 0n, memorySize: 0x41000n, userspaceAddr: BigInt(ram) };
    const refusal = `slot: got ${slot}, want an integer from 0 to 4294967295`;
    expect(() => vm.setUserMemoryRegion(region)).toThrow(refusal);
    expect(() => vm.setUserMemoryRegion2({ ...region, guestMemfd: 0, guestMemfdOffset: 0n })).toThrow(
      refusal,
    );
    expect(failure(() => vm.getDirtyLog({ slot: 0, bitmap: new Int32Array(2) }))).toBe('ENOENT');
  });
});
