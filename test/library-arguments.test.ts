/** What `softcvm` and `softcvm/kvm` say to callers that no type checker watches: a RangeError that names the field, never a TypeError from within. */
import { afterEach, describe, expect, it } from 'vitest';
import {
  Chip,
  createHost,
  type Host,
  launchMeasurement,
  MiB,
  readImage,
  Trace,
  updateCertificates,
  Vm,
} from '../src/index.ts';
import { createKernel } from '../src/kernel/kvm/index.ts';
import { exitWith, tinyElf } from './cli/tiny-elf.ts';

let host: Host | undefined;
afterEach(() => host?.close());
const refusal = (message: string): RangeError => new RangeError(message);
const image = tinyElf(exitWith(9));
const chip = new Chip({ generation: 'milan' });

describe('createHost', () => {
  it.each<[options: unknown, message: string]>([
    [null, 'host: got null, want an object'],
    [[], 'host: got an array, want an object'],
    [new Map([['memory', 5]]), 'host: got a Map, want an object'],
    [{ memory: null }, 'memory: got null, want a number of bytes'],
    [{ memory: '1G' }, 'memory: got 1G, want a number of bytes'],
    [{ memory: 1n }, 'memory: got 1, want a number of bytes'],
    [
      { accel: 'kvm', memory: 64 * MiB },
      'memory: got it with accel kvm, want accel softcvm: the real kernel has no such option',
    ],
    [
      { accel: 'kvm', kernel: '7.2' },
      'kernel: got it with accel kvm, want accel softcvm: the real kernel has no such option',
    ],
    [
      { accel: 'kvm', early: ['certs'] },
      'early: got it with accel kvm, want accel softcvm: the real kernel has no such option',
    ],
    [
      { accel: 'kvm', seed: 7 },
      'seed: got it with accel kvm, want accel softcvm: the real kernel has no such option',
    ],
    [
      { accel: 'kvm', gmemFolio: '4K' },
      'gmemFolio: got it with accel kvm, want accel softcvm: the real kernel has no such option',
    ],
    [
      { accel: 'kvm', chip },
      'chip: got it with accel kvm, want accel softcvm: the real kernel has no such option',
    ],
  ])('of options %#', (options, message) => {
    expect(() => createHost(options as never)).toThrow(refusal(message));
  });
});

describe('createVm', () => {
  it.each<[options: unknown, message: string]>([
    [undefined, 'vm: got undefined, want an object'],
    [[], 'vm: got an array, want an object'],
    [{ image, memory: null }, 'memory: got null, want a number of bytes'],
    [{ image, memory: '64M' }, 'memory: got 64M, want a number of bytes'],
    [{ image, smp: null }, 'smp: got null, want a number of vCPUs'],
    [{ image, smp: '2' }, 'smp: got 2, want a number of vCPUs'],
    [{ image, backend: { kind: 'file', path: 1n } }, 'backend.path: got 1, want the name of a file'],
    [{ image, snp: {} }, 'snp: got it with type sw-protected, want type sev-snp'],
    [{ image, type: 'default', snp: { cBit: 51 } }, 'snp: got it with type default, want type sev-snp'],
  ])('of options %#', (options, message) => {
    host = createHost({ memory: 16 * MiB });
    expect(() => host!.createVm(options as never)).toThrow(refusal(message));
  });

  it.each<[snp: unknown, message: string]>([
    [[], 'snp: got an array, want an object'],
    [{ guest: [] }, 'snp.guest: got an empty array, want an object'],
    [{ certificates: [] }, 'snp.certificates: got an array, want an object'],
    [{ cBit: -1 }, 'snp.cBit: got -1, want an integer from 0 to 63'],
    [{ cBit: 400 }, 'snp.cBit: got 400, want an integer from 0 to 63'],
    [{ cBit: 50 }, 'snp.cBit: got 50, want 51, as the chip has it'],
    [{ kernel: 'vmlinuz' }, 'snp.kernel: got vmlinuz, want an object'],
    [{ kernel: { kernel: 'vmlinuz' } }, 'snp.kernel.kernel: got string, want a Uint8Array'],
    [{ kernel: { kernel: image, initrd: 5 } }, 'snp.kernel.initrd: got number, want a Uint8Array'],
    [{ kernel: { kernel: image, append: 5 } }, 'snp.kernel.append: got 5, want a string'],
    [
      { kernel: { kernel: image, cmdline: 5 } },
      'snp.kernel.cmdline: got a field that is none, want kernel, initrd, append',
    ],
  ])('of an SNP guest with options %#', (snp, message) => {
    host = createHost({ memory: 16 * MiB, chip });
    const vm = { type: 'sev-snp', image, memory: 2 * MiB, snp: snp as never } as const;
    expect(() => host!.createVm(vm)).toThrow(refusal(message));
  });

  it('is what makes VMs', () => {
    const message = 'host: got something else, want a Host: its createVm makes VMs';
    expect(() => new Vm({} as never, { image }, {} as never)).toThrow(refusal(message));
  });
});

describe('a VM and its host', () => {
  it.each([null, 5, {}])('run by no clock: %o', async (clock) => {
    host = createHost({ memory: 16 * MiB });
    const vm = host.createVm({ image, memory: 2 * MiB });
    await expect(vm.run({ clock: clock as never })).rejects.toThrow(
      refusal(`clock: got ${clock}, want a Clock`),
    );
  });

  it.each([1n, '3', undefined, null])('have no frames of descriptor %s', (fd) => {
    host = createHost({ memory: 16 * MiB });
    expect(() => host!.gmemFrames(fd as never)).toThrow(refusal(`fd: got ${fd}, want a file descriptor`));
  });

  it.each([undefined, null, 5, {}])('tell %o nothing', (listener) => {
    const message = `listener: got ${listener}, want a function`;
    expect(() => new Trace().listen(listener as never)).toThrow(refusal(message));
    expect(() => new Trace().listenToFailures(listener as never)).toThrow(refusal(message));
  });
});

describe('readImage', () => {
  it.each([undefined, null, 5, {}])('of %o', async (name) => {
    await expect(readImage(name as never)).rejects.toThrow(refusal(`image: got ${name}, want a string`));
  });
});

describe('launchMeasurement', () => {
  const page = { gpa: 4096, bytes: new Uint8Array(4096), type: 1 };
  it.each<[contents: unknown, message: string]>([
    [undefined, 'contents: got undefined, want an object'],
    [[], 'contents: got an array, want an object'],
    [{ vmsas: [] }, 'contents.pages: got undefined, want an array of pages'],
    [{ pages: [null], vmsas: [] }, 'contents.pages[0]: got null, want an object'],
    [{ pages: [{ ...page, bytes: 5 }], vmsas: [] }, 'contents.pages[0].bytes: got number, want a Uint8Array'],
    [
      { pages: [page, { ...page, type: 9 }], vmsas: [] },
      'contents.pages[1].type: got 9, want an integer from 1 to 6',
    ],
    [{ pages: [{ ...page, gpa: 1 }], vmsas: [] }, 'page: address: got 0x1, want a multiple of 4096'],
    [{ pages: [] }, 'contents.vmsas: got undefined, want an array of Uint8Arrays'],
    [{ pages: [], vmsas: [5] }, 'contents.vmsas[0]: got number, want a Uint8Array'],
  ])('of contents %#', async (contents, message) => {
    await expect(launchMeasurement(contents as never)).rejects.toThrow(refusal(message));
  });
});

describe('updateCertificates', () => {
  const table = () => new Uint8Array(24);
  it.each([undefined, null, 5, {}])('in %o, which is no process', (process) => {
    expect(() => updateCertificates(process as never, '/x', table)).toThrow(
      refusal('process: got something else, want a Process'),
    );
  });

  it.each<[path: unknown, change: unknown, message: string]>([
    [undefined, table, 'path: got undefined, want a string'],
    [5, table, 'path: got 5, want a string'],
    ['/x', undefined, 'change: got undefined, want a function'],
    ['/x', table(), 'change: got 0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0, want a function'],
  ])('of arguments %#', (path, change, message) => {
    host = createHost({ memory: 16 * MiB });
    expect(() => updateCertificates(host!.process, path as never, change as never)).toThrow(refusal(message));
  });

  it('leaves the file as it is where the change brings no table', () => {
    host = createHost({ memory: 16 * MiB });
    const { process } = host;
    updateCertificates(process, '/x', table);
    expect(() => updateCertificates(process, '/x', () => 'PEM' as never)).toThrow(
      refusal('what change returned: got string, want a Uint8Array'),
    );
    expect(process.fstat(process.open('/x')).size).toBe(24n);
  });
});

describe('createKernel', () => {
  it.each<[options: unknown, message: string]>([
    [null, 'kernel: got null, want an object'],
    [5, 'kernel: got 5, want an object'],
    [[], 'kernel: got an array, want an object'],
    [
      { memroy: 5 },
      'kernel.memroy: got a field that is none, want memory, kernel, early, gmemHuge, timeslice, turns, trace, chip, entropy',
    ],
    [{ memory: null }, 'memory: got null, want a number of bytes'],
    [{ memory: '16M' }, 'memory: got 16M, want a number of bytes'],
    [{ kernel: null }, 'kernel: got null, want 6.12 or 7.2'],
    [{ early: 5 }, 'early: got number, want an array of forms'],
    [{ early: null }, 'early: got object, want an array of forms'],
    [{ gmemHuge: 'no' }, 'gmemHuge: got no, want true or false'],
    [{ timeslice: '5' }, 'timeslice: got 5, want a whole number of instructions, or 0'],
    [{ turns: {} }, 'turns: got [object Object], want an Entropy'],
    [{ trace: {} }, 'trace: got [object Object], want a Trace'],
    [{ trace: null }, 'trace: got null, want a Trace'],
    [{ chip: {} }, 'chip: got [object Object], want a Chip'],
    [{ chip: null }, 'chip: got null, want a Chip'],
    [{ chip, entropy: 5 }, 'entropy: got 5, want an Entropy'],
  ])('of options %#', (options, message) => {
    expect(() => createKernel(options as never)).toThrow(refusal(message));
  });

  it.each<[name: unknown, limits: unknown, message: string]>([
    [5, {}, 'name: got 5, want a string'],
    [null, {}, 'name: got null, want a string'],
    ['vmm', null, 'limits: got null, want an object'],
    ['vmm', 5, 'limits: got 5, want an object'],
    ['vmm', { files: 5 }, 'limits.files: got a field that is none, want fileLimit'],
    ['vmm', { fileLimit: '5' }, 'fileLimit: got 5, want an integer from 0'],
    ['vmm', { fileLimit: -1 }, 'fileLimit: got -1, want an integer from 0'],
  ])('makes no process %s with %o', (name, limits, message) => {
    const kernel = createKernel({ memory: 16 * MiB });
    expect(() => kernel.newProcess(name as never, limits as never)).toThrow(refusal(message));
    kernel.close();
  });
});
