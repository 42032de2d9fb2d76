import { setImmediate } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { afterEach, describe, expect, it } from 'vitest';
import { createHost, type Host, LinuxError, MiB, readImage, VmmError } from '../src/index.ts';
import { exitWith, print, tinyElf } from './cli/tiny-elf.ts';

let host: Host;
afterEach(() => host.close());

const exits = { image: tinyElf([...print('x'), ...exitWith(9)]) };

describe('a host', () => {
  it('runs several VMs side by side, each with its own console and its own end', async () => {
    host = createHost({ memory: 64 * MiB });
    const first = host.createVm({ ...exits, memory: 4 * MiB });
    const second = host.createVm({
      image: tinyElf([...print('y'), ...exitWith(3)]),
      memory: 2 * MiB,
      type: 'default',
    });
    const [one, two] = await Promise.all([first.run(), second.run()]);
    expect(one).toMatchObject({
      exit: { reason: 'debug-exit', code: 9 },
      console: 'x',
      memory: { privatePages: 1024 },
    });
    expect(two).toMatchObject({
      exit: { reason: 'debug-exit', code: 3 },
      console: 'y',
      memory: { privatePages: 0 },
    });
    expect(one.memory.privateFrames).toBeGreaterThan(0);
    expect(two.memory.privateFrames).toBe(0);
  });

  it('has no frame left in use when its VMs are closed', async () => {
    host = createHost({ memory: 64 * MiB });
    const before = [...host.usage()];
    for (let round = 0; round < 3; round++) {
      const vm = host.createVm({ ...exits, memory: 4 * MiB });
      await vm.run();
      vm.close();
    }
    expect([...host.usage()].filter(([, frames]) => frames > 0)).toEqual(
      before.filter(([, frames]) => frames > 0),
    );
  });

  it('lets go of a VM that is closed, one that has run too', async () => {
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    host = createHost({ memory: 64 * MiB });
    const use = async (ran: boolean): Promise<WeakRef<object>[]> => {
      const vm = host.createVm({ ...exits, memory: 4 * MiB, smp: 2, irqchip: 'split' });
      if (ran) await vm.run();
      vm.close();
      return [vm, vm.machine, vm.machine.vcpus[1]!, vm.machine.kvm.vm].map((held) => new WeakRef(held));
    };
    const gone = [...(await use(false)), ...(await use(true))];
    // The last VM may still be on the stack.
    await use(true);
    for (let round = 0; round < 3; round++) {
      await setImmediate();
      collect();
    }
    expect(gone.map((held) => held.deref()?.constructor.name)).toEqual(gone.map(() => undefined));
  });

  it('keeps nothing of a VM that could not be made', () => {
    host = createHost({ memory: 64 * MiB });
    const used = () => [...host.usage().values()].reduce((sum, frames) => sum + frames, 0);
    const before = used();
    expect(() => host.createVm({ image: new Uint8Array(3) })).toThrow(VmmError);
    expect(() => host.createVm({ ...exits, memory: 5000 })).toThrow('memory: got 5000 bytes');
    expect(() => host.createVm({ ...exits, smp: 0 })).toThrow('smp: got 0');
    expect(used()).toBe(before);
  });

  it('says who did what on which page to whoever listens, and stops when told', async () => {
    host = createHost({ memory: 64 * MiB });
    const kinds = new Set<string>();
    const stop = host.trace.listen(({ kind }) => kinds.add(kind));
    const vm = host.createVm({ ...exits, memory: 4 * MiB });
    expect(kinds).toContain('vm');
    stop();
    kinds.clear();
    await vm.run();
    expect(kinds.size).toBe(0);
  });

  it('has descriptors enough for a VM of as many vCPUs as KVM allows, and for a second VM', async () => {
    host = createHost({ memory: 256 * MiB });
    const vm = host.createVm({ ...exits, memory: 2 * MiB, smp: 1024 });
    expect((await vm.run()).exit).toMatchObject({ reason: 'debug-exit', code: 9 });
    const second = host.createVm({ ...exits, memory: 2 * MiB, smp: 8 });
    expect((await second.run()).exit).toMatchObject({ reason: 'debug-exit', code: 9 });
  });

  it('offers /dev/kvm itself: ioctls are methods, with their errnos', () => {
    host = createHost({ memory: 64 * MiB, kernel: '6.12' });
    const kvm = host.process.openKvm();
    expect(kvm.getApiVersion()).toBe(12);
    // KVM_CAP_GUEST_MEMFD_FLAGS is younger than 6.12
    expect(kvm.checkExtension(244)).toBe(0);
    expect(kvm.checkExtension(235)).toBe(0b11);
    const vm = kvm.createVm(1);
    const refused = () => vm.createGuestMemfd({ size: 4097n, flags: 0n });
    expect(refused).toThrow(LinuxError);
    expect(refused).toThrow(expect.objectContaining({ errno: 22 }));
    vm.close();
    kvm.close();
  });

  it('refuses a size of memory that cannot be, and is closed once however often it is told to', () => {
    expect(() => createHost({ memory: 1000 })).toThrow(RangeError);
    host = createHost({ memory: 64 * MiB });
    host.close();
    expect(() => host.close()).not.toThrow();
    const image = new Uint8Array(1);
    expect(() => host.createVm({ image })).toThrow(new VmmError('createVm: the host is closed'));
  });
});

describe('a VM', () => {
  it.each([{ kind: 'anonymous' }, { kind: 'memfd' }, { kind: 'file', path: '/ram' }] as const)(
    'takes the shared side of its RAM from %o',
    async (backend) => {
      host = createHost({ memory: 128 * MiB });
      using vm = host.createVm({ ...(await readImage('conversions')), memory: 32 * MiB, backend });
      const report = await vm.run({ timeoutMs: 60_000 });
      expect(report.exit).toMatchObject({ reason: 'debug-exit', code: 0 });
      expect(report.memory.conversions).toBe(2054);
    },
  );

  it('goes on where a time-out left it', async () => {
    host = createHost({ memory: 64 * MiB });
    using vm = host.createVm({ ...(await readImage('loops')), memory: 4 * MiB });
    const first = await vm.run({ timeoutMs: 1 });
    expect(first.exit).toMatchObject({ reason: 'timeout', code: 124 });
    const second = await vm.run({ timeoutMs: 60_000 });
    expect(second.exit).toMatchObject({ reason: 'debug-exit', code: 0 });
    expect(second.instructions).toBeGreaterThan(first.instructions);
    expect(second.console).toContain('fib .. 0x5584');
  });

  it.each([
    ['kernel', '5.1', '7.2 or 6.12'],
    ['gmemFolio', '1G', '4K or 2M'],
  ])('a host refuses %s %s', (option, got, want) => {
    expect(() => createHost({ [option]: got } as never)).toThrow(`${option}: got ${got}, want ${want}`);
  });

  it('a host refuses an accelerator that is not there', () => {
    expect(() => createHost({ accel: 'x' as never })).toThrow('accel: got x, want softcvm or kvm');
  });

  it('goes also where a VM of it cannot be closed', () => {
    const lost = createHost({ memory: 16 * MiB });
    const vm = lost.createVm({ ...exits, type: 'default', memory: 2 * MiB });
    vm.machine.kvm.vm.close();
    expect(() => lost.close()).toThrow(VmmError);
    expect(lost.processIsGone).toBe(true);
  });

  it.each([
    ['memroy', 5, 'host.memroy: got a field that is none, want accel, memory, kernel, early, seed, '],
    ['trace', 5, 'trace: got 5, want a Trace'],
    ['early', 5, 'early: got number, want an array of forms'],
    ['chip', {}, 'chip: got [object Object], want a Chip'],
  ])('a host refuses option %s of %j', (option, got, refusal) => {
    expect(() => createHost({ [option]: got } as never)).toThrow(refusal);
  });

  it('a host refuses options that are no object', () => {
    expect(() => createHost(5 as never)).toThrow(new RangeError('host: got 5, want an object'));
  });

  it.each([
    ['smpp', 5, 'vm.smpp: got a field that is none, want type, snp, memory, smp, vcpuSignature, irqchip, '],
    ['imageName', 5, 'imageName: got 5, want a string'],
    ['onConsole', 5, 'onConsole: got 5, want a function'],
    ['dirtyRingSize', -1, 'dirtyRingSize: got -1, want a power of two from 256'],
    ['dirtyRingSize', Number.NaN, 'dirtyRingSize: got NaN, want a power of two from 256'],
    ['dirtyRingSize', '256', 'dirtyRingSize: got 256, want a power of two from 256'],
    ['dirtyRingSize', 3, 'dirtyRingSize: got 3, want a power of two from 256'],
    ['dirtyRingSize', 128, 'dirtyRingSize: got 128, want a power of two from 256'],
    ['dirtyRingSize', 256, 'dirtyRingSize: got 256 with type sw-protected, want type default: '],
    ['smp', 1.5, 'smp: got 1.5, want an integer from 1'],
    [
      'smp',
      1025,
      'smp: Number of SMP cpus requested (1025) exceeds the maximum cpus supported by KVM (1024)',
    ],
    ['backend', 'file', 'backend: got file, want an object'],
    ['backend', { kind: 'file' }, 'backend.path: got undefined, want the name of a file'],
    ['backend', { kind: 'file', path: '' }, 'backend.path: got "", want the name of a file'],
    ['backend', { kind: 'memfd', path: '/x' }, 'backend.path: got a field that is none, want kind'],
    ['snp', 5, 'snp: got 5, want an object'],
    ['snp', { guest: null }, 'snp.guest: got null, want an object'],
    [
      'snp',
      { bogus: 1 },
      'snp.bogus: got a field that is none, want guest, cBit, certificates, guestData, kernel',
    ],
    ['snp', { cBit: 'x' }, 'snp.cBit: got x, want an integer'],
    ['snp', { guestData: new Uint8Array(65) }, 'snp.guestData: got 65 bytes, want at most 64'],
    ['snp', { guestData: 5 }, 'snp.guestData: got 5, want a Uint8Array'],
    ['snp', { certificates: { path: 5 } }, 'snp.certificates.path: got 5, want a string'],
    ['snp', { certificates: { file: '/x' } }, 'snp.certificates.file: got a field that is none, want path, '],
    ['snp', { certificates: { locking: 'x' } }, 'snp.certificates.locking: got x, want shared or off'],
    ['snp', { certificates: { busy: 3 } }, 'snp.certificates.busy: got 3, want a function'],
  ])('a VM refuses option %s of %j', (option, got, refusal) => {
    host = createHost({ memory: 16 * MiB });
    expect(() => host.createVm({ ...exits, memory: 2 * MiB, [option]: got } as never)).toThrow(refusal);
  });

  it.each([
    ['timeout', 5, 'run.timeout: got a field that is none, want timeoutMs, signal, clock'],
    ['timeoutMs', -1, 'timeoutMs: got -1, want a number from 0'],
    ['timeoutMs', Number.NaN, 'timeoutMs: got NaN, want a number from 0'],
    ['signal', {}, 'signal: got [object Object], want an AbortSignal'],
  ])('a run refuses option %s of %j', async (option, got, refusal) => {
    host = createHost({ memory: 16 * MiB });
    const vm = host.createVm({ ...exits, memory: 2 * MiB });
    await expect(vm.run({ [option]: got })).rejects.toThrow(refusal);
  });

  it.each([-1, 1.5, 2 ** 32, Number.NaN, '7' as never])('a host refuses seed %j', (seed) => {
    const refusal = `seed: got ${seed}, want an integer from 0 to 4294967295`;
    expect(() => createHost({ memory: 16 * MiB, seed })).toThrow(refusal);
  });

  it('a VM refuses a dirty ring larger than KVM has, and takes the least', () => {
    host = createHost({ memory: 16 * MiB });
    const vm = { ...exits, memory: 2 * MiB, type: 'default' } as const;
    expect(() => host.createVm({ ...vm, dirtyRingSize: 131072 })).toThrow(
      'dirtyRingSize: KVM dirty ring size 131072 too big (maximum is 65536). Please use a smaller value.',
    );
    using made = host.createVm({ ...vm, dirtyRingSize: 256 });
    expect(made.machine.vcpus[0]!.dirtyRing).toHaveLength(4 * 256);
  });

  it.each(['x', undefined])('a VM refuses a backend of kind %s', (kind) => {
    host = createHost({ memory: 16 * MiB });
    expect(() => host.createVm({ ...exits, memory: 2 * MiB, backend: { kind } as never })).toThrow(
      new VmmError(`backend: got kind ${kind}, want anonymous, memfd or file`),
    );
  });

  it('a host refuses early forms that it does not have', () => {
    expect(() => createHost({ early: ['sev-launch' as never] })).toThrow(
      'early: got sev-launch, want private-fault or certs',
    );
  });

  it('a VM is of a kind that is there, and has an image', () => {
    host = createHost({ memory: 16 * MiB });
    const image = new Uint8Array(1);
    expect(() => host.createVm({ type: 'tdx' as never, image })).toThrow(
      'type: got tdx, want sw-protected or default or sev-snp',
    );
    expect(() => host.createVm({} as never)).toThrow('image: got undefined, want a Uint8Array');
  });
});
