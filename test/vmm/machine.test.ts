import { describe, expect, it } from 'vitest';
import { LinuxError } from '../../src/base/errors.ts';
import { VmmError } from '../../src/vmm/error.ts';
import { createMachine, type MachineOptions } from '../../src/vmm/machine.ts';
import { RecordingProcess, type ScriptedRun } from './recording-process.ts';

const MiB = 1048576;

function setUp(change: Partial<MachineOptions> = {}, script: ScriptedRun[] = []) {
  const process = new RecordingProcess();
  process.script = (vcpu) => script[vcpu.runs - 1] ?? { fill: (run) => (run.exitReason = 5) };
  let text = '';
  const options: MachineOptions = {
    type: 'sw-protected',
    memory: 4 * MiB,
    smp: 1,
    image: Uint8Array.of(0xf4),
    imageName: 'halt.bin',
    bootStub: Uint8Array.of(0xeb, 0xfe),
    console: (bytes) => {
      text += new TextDecoder().decode(bytes);
    },
    ...change,
  };
  return { process, options, text: () => text };
}

const out = (port: number, text: string): ScriptedRun => ({
  fill: (run) => {
    run.exitReason = 2;
    run.ioDirection = 1;
    run.ioPort = port;
    run.ioSize = 1;
    run.ioCount = text.length;
    run.ioDataOffset = 0x1000;
    [...text].forEach((letter, index) => {
      run.setIoValue(letter.charCodeAt(0), index);
    });
  },
});

describe('a machine', () => {
  it('that is software-protected has private RAM and a shared boot area above it', () => {
    const { process, options } = setUp();
    createMachine(process, options);
    expect(process.vmType).toBe(1);
    expect(process.of('enableCap')).toEqual(['enableCap(0xc9, 0x1000)']);
    const slots = process.calls.filter((call) => /^(setUserMemoryRegion2|setMemoryAttributes)/.test(call));
    expect(slots).toEqual([
      'setUserMemoryRegion2(0x0, 0x4, 0x0, 0x400000, guest_memfd, 0x0)',
      'setMemoryAttributes(0x0, 0x400000, 0x8)',
      expect.stringMatching(/^setUserMemoryRegion2\(0x1, 0x0, 0x400000, 0x[0-9a-f]+, no file, 0x0\)$/),
    ]);
    // The host writes the boot area and nothing else.
    expect([...process.written.keys()]).toEqual([Number(process.slots.get(1)!.userspaceAddr)]);
  });

  it('of the default type has plain RAM, and its guest may not ask for conversions', () => {
    const { process, options } = setUp({ type: 'default' });
    createMachine(process, options);
    expect(process.vmType).toBe(0);
    expect(process.of('enableCap')).toEqual([]);
    expect(process.of('createGuestMemfd')).toEqual([]);
    expect(process.of('setUserMemoryRegion2')[0]).toBe(
      'setUserMemoryRegion2(0x0, 0x0, 0x0, 0x400000, no file, 0x0)',
    );
  });

  it.each([
    ['anonymous', { kind: 'anonymous' as const }, ['mmap(0x400000, 0x3, 0x22)']],
    [
      'memfd',
      { kind: 'memfd' as const },
      ['ftruncate(0x6, 0x400000)', 'mmap(0x400000, 0x3, 0x1, memfd, 0x0)'],
    ],
    [
      'file',
      { kind: 'file' as const, path: '/ram' },
      ['ftruncate(0x6, 0x400000)', 'mmap(0x400000, 0x3, 0x1, file, 0x0)'],
    ],
  ])('takes its RAM from %s memory', (_, backend, calls) => {
    const { process, options } = setUp({ backend });
    createMachine(process, options);
    const made = process.calls.filter((call) => /^(mmap\(0x400000|ftruncate)/.test(call));
    expect(made.map((call) => call.replace(/ftruncate\(0x[0-9a-f]+/, 'ftruncate(0x6'))).toEqual(calls);
  });

  it('gives each vCPU its index and its APIC id', () => {
    const { process, options } = setUp({ smp: 3 });
    process.cpuid = [
      { function: 1, index: 0, flags: 0, eax: 1, ebx: 0xff000800, ecx: 3, edx: 4 },
      { function: 0xb, index: 0, flags: 1, eax: 0, ebx: 0, ecx: 0, edx: 99 },
    ];
    createMachine(process, options);
    expect(process.vcpus.map(({ regs }) => regs?.rdi)).toEqual([0n, 1n, 2n]);
    expect(process.vcpus.map(({ regs }) => regs?.rip)).toEqual([0x401000n, 0x401000n, 0x401000n]);
    expect(process.vcpus.map(({ cpuid }) => cpuid.map(({ ebx, edx }) => [ebx, edx]))).toEqual([
      [
        [0x800, 4],
        [0, 0],
      ],
      [
        [0x1000800, 4],
        [0, 1],
      ],
      [
        [0x2000800, 4],
        [0, 2],
      ],
    ]);
  });

  it('runs: the console, the code, the counters', async () => {
    const convert: ScriptedRun = {
      fill: (run) => {
        run.exitReason = 3;
        run.hypercallNrNumber = 12;
        run.setHypercallArg(0, 0x100000n);
        run.setHypercallArg(1, 4n);
        run.setHypercallArg(2, 0n);
      },
    };
    const { process, options, text } = setUp({}, [out(0x3f8, 'hi\nthere'), convert, out(0xf4, '\x05')]);
    const machine = createMachine(process, options);
    const end = await machine.run();
    expect(text()).toBe('hi\nthere');
    expect(end).toMatchObject({
      reason: 'debug-exit',
      code: 5,
      exits: { io: 2, hypercall: 1, mmio: 0, memory_fault: 0, hlt: 0 },
      instructions: 3,
      conversions: 4,
      privatePages: 1020,
    });
  });

  it('gives everything back when it is closed, once', () => {
    const { process, options } = setUp({ smp: 2, backend: { kind: 'memfd' } });
    const machine = createMachine(process, options);
    machine.close();
    machine.close();
    expect(process.leaks()).toEqual([]);
    expect(machine.discards.coordinatedRequired).toBe(0);
  });
});

describe('a machine that cannot be set up leaves nothing behind', () => {
  it.each([
    ['openKvm', 1, 'Could not access KVM kernel module: ENOENT'],
    ['createVm', 1, 'ioctl(KVM_CREATE_VM) failed for VM type 1: ENOENT'],
    ['enableCap', 1, 'KVM_ENABLE_CAP(KVM_CAP_EXIT_HYPERCALL) for MAP_GPA_RANGE failed: ENOENT'],
    ['memfdCreate', 1, "pc.ram: can't create memfd: ENOENT"],
    ['fstat', 1, "pc.ram: can't stat backing store: ENOENT"],
    ['ftruncate', 1, "pc.ram: can't grow backing store: ENOENT"],
    ['mmap', 1, 'pc.ram: unable to map backing store for guest RAM: ENOENT'],
    ['createGuestMemfd', 1, 'Error creating KVM guest_memfd: ENOENT'],
    ['setUserMemoryRegion2', 1, 'pc.ram: error registering slot 0 at 0x0+0x400000 flags 0x4: ENOENT'],
    ['setMemoryAttributes', 1, 'pc.ram: failed to set memory attribute private for 0x0+0x400000: ENOENT'],
    ['mmap', 2, "cannot set up guest memory 'boot': ENOENT"],
    ['setUserMemoryRegion2', 2, 'boot: error registering slot 1'],
    ['write', 1, 'write was told to fail'],
    ['createVcpu', 1, 'createVcpu was told to fail'],
    ['createVcpu', 2, 'createVcpu was told to fail'],
  ])('%s, call %i', (call, nth, message) => {
    const { process, options } = setUp({ smp: 2, backend: { kind: 'memfd' } });
    process.fail(call, 'ENOENT', nth);
    expect(() => createMachine(process, options)).toThrow(message);
    expect(process.leaks()).toEqual([]);
  });

  it.each([
    ['memory within a page', { memory: 0x1800 }, 'memory: got 6144 bytes, want a positive multiple of 4096'],
    ['no memory', { memory: 0 }, 'memory: got 0 bytes'],
    [
      'more memory than a slot holds',
      { memory: 0x80000000000 },
      'memory: got 8796093022208 bytes, want at most 8796093018112',
    ],
    ['no vCPU', { smp: 0 }, 'smp: got 0, want an integer from 1'],
    ['half a vCPU', { smp: 1.5 }, 'smp: got 1.5, want an integer from 1'],
    [
      'an image that does not fit',
      { memory: 1 * MiB },
      'halt.bin: memory: got 0x100000 bytes, want at least 0x100001',
    ],
    ['an image that is no ELF file', { imageName: 'halt' }, 'halt: e_ident magic: got f4, want 7f 45 4c 46'],
  ])('%s', (_, change, message) => {
    const { process, options } = setUp(change);
    expect(() => createMachine(process, options)).toThrow(VmmError);
    expect(() => createMachine(process, options)).toThrow(message);
    expect(process.leaks()).toEqual([]);
  });

  it('an error of a system call keeps its errno', () => {
    const { process, options } = setUp();
    process.fail('createVcpu', 'EEXIST');
    expect(() => createMachine(process, options)).toThrow(LinuxError);
  });
});
