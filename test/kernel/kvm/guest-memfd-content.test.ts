/** Pages of a guest_memfd whose first content comes from elsewhere: now, later, or never. */
import { setImmediate } from 'node:timers/promises';
import { describe, expect, it } from 'vitest';
import { failure } from '../process-fixture.ts';
import { HLT, nestedFault, type ScriptedCore } from './vcpu-bench.ts';
import { startVm, type TestVm } from './vm-fixture.ts';

const KEEP_SIZE = 1;
const PUNCH = 3;
const GPA = 0x20_0000;

/** All pages of a 64 KiB slot are private. */
function startPrivate(): TestVm {
  const host = startVm();
  host.setAttributes(0x20_0000n, 0x1_0000n, 8n);
  return host;
}

describe('content from elsewhere', () => {
  /** A file whose pages 0 to 3 come when the test says so; the others at once, filled with their number. */
  const start = () => {
    const host = startPrivate();
    const { fd, file } = host.addFileSlot();
    const asked: number[] = [];
    const arrivals = new Map<
      number,
      { deliver: (bytes: Uint8Array) => void; fail: (error: Error) => void }
    >();
    file.fillWith((index) => {
      asked.push(index);
      if (index > 3) return new Uint8Array(4096).fill(index);
      return new Promise((deliver, fail) => arrivals.set(index, { deliver, fail }));
    });
    const page = (byte: number) => new Uint8Array(4096).fill(byte);
    return { host, fd, file, asked, arrivals, page };
  };

  it('that is there at once is the page', () => {
    const { host } = start();
    expect(host.touch(GPA + 0x9000)).toBe(0);
    expect(host.guestWord(GPA + 0x9000)).toBe(0x0909_0909);
  });

  it.each([
    ['there at once', () => new Uint8Array(4096)],
    ['to come', async () => new Uint8Array(4096)],
    ['to fail', () => Promise.reject(new Error('no such page'))],
  ])(
    'that is %s for a file that is closed when it is asked for leaves no frame behind',
    async (_, content) => {
      const { host, fd, file } = start();
      file.fillWith(() => {
        host.process.close(fd);
        return content();
      });
      expect(host.touch(GPA)).toBe(-14);
      await setImmediate();
      expect(host.memory.usage().get('guest_memfd') ?? 0).toBe(0);
    },
  );

  it('that comes later is asked for once, and then the page', async () => {
    const { host, asked, arrivals, page } = start();
    expect(host.touch(GPA)).toBe(1);
    expect(host.touch(GPA)).toBe(1);
    expect(asked).toEqual([0]);
    arrivals.get(0)!.deliver(page(0x5a));
    await host.vcpu.pending;
    expect(host.goOn()).toBe(0);
    expect(host.guestWord(GPA)).toBe(0x5a5a_5a5a);
    expect(asked).toEqual([0]);
  });

  it('whose page was punched meanwhile is dropped, and asked for anew', async () => {
    const { host, fd, asked, arrivals, page } = start();
    expect(host.touch(GPA)).toBe(1);
    const { pending } = host.vcpu;
    const old = arrivals.get(0)!;
    host.process.fallocate(fd, PUNCH, 0n, 0x1000n);
    expect(host.fileFrames).toBe(0);
    await pending;
    expect(host.vcpu.run()).toBe(1);
    expect(asked).toEqual([0, 0]);
    old.deliver(page(0x11));
    await Promise.resolve();
    expect(host.vcpu.run()).toBe(1);
    arrivals.get(0)!.deliver(page(0x22));
    await host.vcpu.pending;
    expect(host.touch(GPA)).toBe(0);
    expect(host.fileFrames).toBe(1);
    expect(host.guestWord(GPA)).toBe(0x2222_2222);
  });

  it('is not given up where the pages before it are punched', async () => {
    const { host, fd, asked, arrivals, page } = start();
    expect(host.touch(GPA + 0x3000)).toBe(1);
    host.process.fallocate(fd, PUNCH, 0n, 0x3000n);
    arrivals.get(3)!.deliver(page(0x33));
    await host.vcpu.pending;
    expect(host.touch(GPA + 0x3000)).toBe(0);
    expect(host.guestWord(GPA + 0x3000)).toBe(0x3333_3333);
    expect(asked).toEqual([3]);
  });

  it('that fails to come leaves a poisoned page', async () => {
    const { host, file, arrivals } = start();
    expect(host.touch(GPA)).toBe(1);
    arrivals.get(0)!.fail(new Error('the source is gone'));
    await host.vcpu.pending;
    expect(host.vcpu.run()).toBe(-133);
    expect(host.vcpu.kvmRun.exitReason).toBe(39);
    expect(file.frames.all).toBe(1);
  });

  it('whose file is closed meanwhile comes to nothing: −EFAULT, exit 39', async () => {
    const { host, fd, arrivals, page } = start();
    expect(host.touch(GPA)).toBe(1);
    host.process.close(fd);
    arrivals.get(0)!.deliver(page(1));
    await host.vcpu.pending;
    expect(host.vcpu.run()).toBe(-14);
    expect(host.vcpu.kvmRun.exitReason).toBe(39);
    expect(host.fileFrames).toBe(0);
  });

  it('whose slot is deleted meanwhile: the fault starts again', async () => {
    const { host, arrivals, page } = start();
    expect(host.touch(GPA)).toBe(1);
    host.setRegion({ memorySize: 0n });
    arrivals.get(0)!.deliver(page(1));
    await host.vcpu.pending;
    const again = host.touch(GPA);
    expect([again, host.vcpu.kvmRun.exitReason]).toEqual([-14, 39]);
  });

  it('is asked for by fallocate as well, which does not wait and does not overwrite', async () => {
    const { host, fd, file, asked, arrivals, page } = start();
    expect(host.touch(GPA)).toBe(1);
    host.process.fallocate(fd, KEEP_SIZE, 0n, 0x1_0000n);
    expect(asked.sort((a, b) => a - b)).toEqual(Array.from({ length: 16 }, (_, index) => index));
    expect(host.fileFrames).toBe(16);
    for (const index of [3, 1, 0, 2]) arrivals.get(index)!.deliver(page(0x40 + index));
    await host.vcpu.pending;
    await Promise.resolve();
    expect(host.goOn()).toBe(0);
    expect(host.guestWord(GPA)).toBe(0x4040_4040);
    expect(file.frames.all).toBe(16);
    expect(host.fileFrames).toBe(16);
    expect(host.touch(GPA + 0x3000)).toBe(0);
    expect(host.guestWord(GPA + 0x3000)).toBe(0x4343_4343);
  });

  it('is not asked for without a frame to put it in: −ENOMEM', () => {
    const { host, fd, asked } = start();
    expect(host.touch(GPA + 0x9000)).toBe(0);
    const big = host.createFile(1n << 30n);
    expect(failure(() => host.process.fallocate(big, KEEP_SIZE, 0n, 1n << 30n))).toBe('ENOMEM');
    expect(host.touch(GPA)).toBe(-12);
    expect(failure(() => host.process.fallocate(fd, KEEP_SIZE, 0x8000n, 0x1000n))).toBe('ENOMEM');
    expect(asked).toEqual([9]);
    host.process.fallocate(big, PUNCH, 0n, 0x10_0000n);
    expect(host.touch(GPA)).toBe(1);
    expect(asked).toEqual([9, 0]);
  });

  it('may arrive when everything is closed', async () => {
    const { host, arrivals, page } = start();
    expect(host.touch(GPA)).toBe(1);
    host.process.exit();
    expect(host.memory.leaks()).toEqual([]);
    arrivals.get(0)!.deliver(page(1));
    await Promise.resolve();
    expect(host.memory.leaks()).toEqual([]);
  });

  it('that is on its way keeps folios away from its neighbours', async () => {
    const host = startVm({ gmemHuge: true });
    host.setAttributes(0x20_0000n, 0x40_0000n, 8n);
    const { file } = host.addFileSlot({ size: 0x40_0000n });
    let deliver = (_: Uint8Array): void => {};
    file.fillWith(() => new Promise((resolve) => (deliver = resolve)));
    expect(host.touch(GPA)).toBe(1);
    file.fillWith(undefined);
    const other = host.vm.createVcpu(1);
    (other.core as ScriptedCore).script.push(nestedFault(GPA + 0x1000, 6), HLT);
    expect(other.run()).toBe(0);
    expect(file.frames).toEqual({ all: 2, huge: 0 });
    deliver(new Uint8Array(4096).fill(6));
    await host.vcpu.pending;
    expect(host.goOn()).toBe(0);
    expect(host.guestWord(GPA)).toBe(0x0606_0606);
  });

  it('does not become part of a folio', () => {
    const host = startVm({ gmemHuge: true });
    host.setAttributes(0x20_0000n, 0x40_0000n, 8n);
    const { file } = host.addFileSlot({ size: 0x40_0000n });
    file.fillWith(() => new Uint8Array(4096).fill(3));
    expect(host.touch(GPA)).toBe(0);
    expect(file.frames).toEqual({ all: 1, huge: 0 });
  });
});
