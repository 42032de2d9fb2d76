/** Machines whose guests run for real, on this house's kernel and cores. */
import { readFileSync } from 'node:fs';
import { afterEach, describe, expect, it } from 'vitest';
import {
  createKernel,
  type GuestMemfd,
  type Kernel,
  type KernelOptions,
} from '../../src/kernel/kvm/index.ts';
import type { Process } from '../../src/kernel/process.ts';
import { anonymousBackend } from '../../src/vmm/backends/anonymous.ts';
import { createMachine, type Machine, type MachineOptions } from '../../src/vmm/machine.ts';
import { GuestProgram } from '../kernel/kvm/guest-program.ts';

const MEMORY = 0x400000;
const FLAT = 0x100000;
const PREBUILT = new URL('../../guests/prebuilt/', import.meta.url);
const bootStub = readFileSync(new URL('boot.bin', PREBUILT));

let kernel: Kernel;
let process: Process;
let machine: Machine | undefined;
let text = '';

afterEach(() => {
  machine?.close();
  machine = undefined;
  expect(kernel.memory.leaks()).toEqual([]);
  kernel.close();
});

function boot(
  program: GuestProgram | string,
  options: Partial<MachineOptions> & { host?: KernelOptions } = {},
): Machine {
  const { host, ...others } = options;
  kernel = createKernel({ memory: 64 * 1024 * 1024, timeslice: 10_000, ...host });
  process = kernel.newProcess();
  text = '';
  const isName = typeof program === 'string';
  machine = createMachine(process, {
    type: 'sw-protected',
    memory: MEMORY,
    smp: 1,
    image: isName ? readFileSync(new URL(`${program}.elf`, PREBUILT)) : program.assemble(FLAT),
    imageName: isName ? program : 'test.bin',
    bootStub,
    console: (bytes) => {
      text += new TextDecoder().decode(bytes);
    },
    ...others,
  });
  return machine;
}

const print = (program: GuestProgram, letters: string): GuestProgram => {
  program.set('rdx', 0x3f8n);
  for (const letter of letters) program.set('rax', BigInt(letter.charCodeAt(0))).out();
  return program;
};
const exit = (program: GuestProgram, code: number): GuestProgram =>
  program.set('rdx', 0xf4n).set('rax', BigInt(code)).out().forever();

const types = ['sw-protected', 'default'] as const;

describe.each(types)('a guest of type %s', (type) => {
  it('prints, and its byte is the exit code', async () => {
    const vm = boot(exit(print(new GuestProgram(), 'ok\n'), 42), { type });
    expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({
      reason: 'debug-exit',
      code: 42,
      exits: { io: 4 },
      privatePages: type === 'default' ? 0 : 1024,
    });
    expect(text).toBe('ok\n');
  });

  it('enters with RSP at the top of RAM minus 8, its index in RDI, all else zero, interrupts off', async () => {
    const vm = boot(new GuestProgram().hlt(), { type, smp: 3 });
    expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({ reason: 'hlt', code: 0, exits: { hlt: 3 } });
    vm.vcpus.forEach((vcpu, index) => {
      const { rip, rsp, rdi, rflags, ...others } = vcpu.getRegs();
      expect([rip, rsp, rdi, rflags & 0x200n]).toEqual([0x100001n, 0x3ffff8n, BigInt(index), 0n]);
      expect(new Set(Object.values(others))).toEqual(new Set([0n]));
      expect(vcpu.getSregs()).toMatchObject({
        cr0: 0x80010033n,
        cr4: 0x620n,
        efer: 0xd01n,
        cs: { dpl: 0, l: 1 },
      });
    });
  });
});

it('what a guest writes to private RAM is not in the memory that the VMM maps', async () => {
  const program = new GuestProgram()
    .set('rbx', 0x200000n)
    .set('rcx', 0x1122334455667788n)
    .store('rbx', 'rcx')
    .hlt();
  const vm = boot(program);
  await vm.run({ timeoutMs: 10_000 });
  const bytes = new Uint8Array(MEMORY);
  process.memory.read(vm.ram.ramBlock!.host!, bytes);
  expect(bytes.every((byte) => byte === 0)).toBe(true);

  machine!.close();
  kernel.close();
  const plain = boot(program, { type: 'default' });
  await plain.run({ timeoutMs: 10_000 });
  process.memory.read(plain.ram.ramBlock!.host!, bytes);
  expect(bytes[0x200000]).toBe(0x88);
});

it.each(['memfd', 'file'] as const)('RAM may come from a %s', async (kind) => {
  const backend = kind === 'file' ? { kind, path: '/ram' } : { kind };
  const vm = boot('conversions', { memory: 0x4000000, backend });
  expect(await vm.run({ timeoutMs: 20_000 })).toMatchObject({ reason: 'debug-exit', code: 0 });
  if (kind === 'file') {
    vm.close();
    process.unlink('/ram');
  }
});

it.each(['7.2', '6.12'] as const)(
  'the guest that converts its memory is content on Linux %s',
  async (version) => {
    const vm = boot('conversions', { memory: 0x4000000, host: { kernel: version } });
    const end = await vm.run({ timeoutMs: 20_000 });
    expect(end).toMatchObject({
      reason: 'debug-exit',
      code: 0,
      exits: { hypercall: 10 },
      privatePages: 16384,
    });
    expect(text).toContain('conversions: all as they should be');
    // {0,4K} {0,2M} {4K,4K} {4K,2M} {2M,4K}, each out and back.
    expect(end.conversions).toBe(2 * (1 + 512 + 1 + 512 + 1));
  },
);

describe('MAP_GPA_RANGE', () => {
  const ask = (gpa: bigint, pages: bigint, attributes: bigint) =>
    new GuestProgram()
      .set('rax', 12n)
      .set('rbx', gpa)
      .set('rcx', pages)
      .set('rdx', attributes)
      .vmmcall()
      .hlt();
  it.each([
    ['RAM to shared', 0x300000n, 2n, 0n, 0n, 2],
    ['a hole to shared', 0xd0000000n, 1n, 0n, 0n, 0],
    ['a hole to private', 0xd0000000n, 1n, 16n, -22n, 0],
    ['the boot area, which has no private side, to private', 0x400000n, 1n, 16n, -22n, 0],
    ['the boot area to shared', 0x400000n, 1n, 0n, -22n, 0],
    ['no pages', 0x300000n, 0n, 0n, -22n, 0],
    ['an address within a page', 0x300010n, 1n, 0n, -22n, 0],
  ])('of %s', async (_, gpa, pages, attributes, answer, conversions) => {
    const vm = boot(ask(gpa, pages, attributes));
    const end = await vm.run({ timeoutMs: 10_000 });
    expect(end).toMatchObject({ reason: 'hlt', conversions });
    expect(vm.vcpus[0]!.getRegs().rax).toBe(BigInt.asUintN(64, answer));
  });
});

describe('a run that cannot go on ends with the reason', () => {
  it('time is up for a guest that loops', async () => {
    const vm = boot(new GuestProgram().forever());
    expect(await vm.run({ timeoutMs: 50 })).toMatchObject({
      reason: 'timeout',
      code: 124,
      message: expect.stringMatching(/^the guest did not end within 50 ms: vCPU 0 at rip 0x[0-9a-f]+$/),
    });
  });

  it('a triple fault', async () => {
    const vm = boot(new GuestProgram().ud2());
    expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({ reason: 'shutdown', code: 125 });
  });

  const readAt = (gpa: bigint) => exit(new GuestProgram().set('rsi', gpa).load('rax', 'rsi'), 0);
  const makePrivate = (vm: Machine, address: bigint) =>
    vm.kvm.vm.setMemoryAttributes({ address, size: 0x1000n, attributes: 8n, flags: 0n });

  it('a private page where there is no memory region', async () => {
    const vm = boot(readAt(0xd0000000n));
    makePrivate(vm, 0xd0000000n);
    expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({
      reason: 'error',
      code: 125,
      message:
        'vCPU 0: memory fault at gpa 0xd0000000: conversion of 0xd0000000+0x1000 to private: no memory region there',
      exits: { memory_fault: 1 },
    });
  });

  it('a private page of RAM that has no guest_memfd', async () => {
    const vm = boot(readAt(0xe0000000n));
    const plain = anonymousBackend(
      { process, ramList: vm.ramList },
      { name: 'plain', size: 0x1000, sharing: 'private', guestMemfd: 'none' },
    );
    vm.systemMemory.add(plain, 0xe0000000);
    makePrivate(vm, 0xe0000000n);
    expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({
      reason: 'error',
      message:
        'vCPU 0: memory fault at gpa 0xe0000000: conversion of 0xe0000000+0x1000 to private: memory region plain has no guest_memfd',
    });
    vm.systemMemory.remove(plain);
    vm.ramList.free(plain.ramBlock!);
  });

  it('a slot that was deleted behind the VMM’s back: converted once, then it ends', async () => {
    const vm = boot(readAt(0x200000n));
    const region = { slot: 0, flags: 0, guestPhysAddr: 0n, memorySize: 0n, userspaceAddr: 0n };
    vm.kvm.vm.setUserMemoryRegion(region);
    expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({
      reason: 'error',
      message: expect.stringMatching(/repeats: it was converted to private and the guest made no progress/),
      exits: { memory_fault: 2 },
      conversions: 0,
    });
    vm.kvm.vm.setUserMemoryRegion({
      ...region,
      memorySize: BigInt(MEMORY),
      userspaceAddr: BigInt(vm.ram.ramBlock!.host!),
    });
  });

  it('a guest that reads where nothing is gets zeros, and all ones from a port', async () => {
    const vm = boot(
      new GuestProgram()
        .set('rsi', 0xd0000000n)
        .set('rbx', 7n)
        .load('rbx', 'rsi')
        .set('rdx', 0x60n)
        .set('rax', 0n)
        .in()
        .hlt(),
    );
    expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({ reason: 'hlt', exits: { mmio: 1, io: 1 } });
    const { rax, rbx } = vm.vcpus[0]!.getRegs();
    expect([rax, rbx]).toEqual([0xffn, 0n]);
  });
});

it('a page that comes late holds up who wants it until it is there', async () => {
  const program = new GuestProgram().set('rbx', 0x200000n).load('rcx', 'rbx').hlt();
  const vm = boot(program, { smp: 2 });
  const file = process.files.get(vm.ram.ramBlock!.guestMemfd).operations as GuestMemfd;
  let deliver = (): void => {};
  file.fillWith((index) =>
    index === 0x200
      ? new Promise<Uint8Array>((resolve) => {
          deliver = () => resolve(new Uint8Array(4096).fill(0x11));
        })
      : undefined,
  );
  const first = await vm.run({ timeoutMs: 20 });
  expect(first).toMatchObject({ reason: 'timeout', exits: { hlt: 0 } });
  expect(first.exits.pending).toBeGreaterThan(0);
  deliver();
  expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({ reason: 'hlt', exits: { hlt: 2 } });
  expect(vm.vcpus.map((vcpu) => vcpu.getRegs().rcx)).toEqual([0x1111111111111111n, 0x1111111111111111n]);
});

it('several vCPUs interleave the same way every time', async () => {
  const program = () => print(new GuestProgram(), 'abcdefgh'.repeat(10)).hlt();
  const results = [];
  for (let round = 0; round < 2; round++) {
    const vm = boot(program(), { smp: 4, host: { timeslice: 7 } });
    const { exits, instructions } = await vm.run({ timeoutMs: 10_000 });
    results.push({ exits, instructions, text });
    if (round === 0) {
      vm.close();
      kernel.close();
    }
  }
  expect(results[0]).toEqual(results[1]);
  expect(text.length).toBe(4 * 80);
  expect(text).not.toBe('abcdefgh'.repeat(40));
});

it('a host that is too small for what the guest touches ends the run with ENOMEM', async () => {
  const touch = new GuestProgram();
  for (let page = 0; page < 600; page++)
    touch.set('rbx', BigInt(0x200000 + page * 0x1000)).store('rbx', 'rbx');
  const vm = boot(exit(touch, 3), { host: { memory: 2 * 1024 * 1024 }, memory: 0x40000000 });
  expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({
    reason: 'error',
    message: expect.stringMatching(/^vCPU 0: KVM_RUN failed: ENOMEM at gpa 0x[0-9a-f]+000$/),
  });
});

it('a guest of 1 TiB runs on a small host: frames come when they are touched', async () => {
  const program = new GuestProgram().set('rbx', 0xff_0000_0000n).store('rbx', 'rbx').load('rax', 'rbx').hlt();
  const vm = boot(program, { memory: 2 ** 40, host: { memory: 4 * 1024 * 1024 } });
  expect(await vm.run({ timeoutMs: 10_000 })).toMatchObject({ reason: 'hlt', privatePages: 2 ** 28 });
  expect(vm.vcpus[0]!.getRegs()).toMatchObject({ rax: 0xff_0000_0000n, rsp: 0xff_ffff_fff8n });
});
