import { describe, expect, it } from 'vitest';
import { ConsoleBuffer } from '../../../src/vmm/devices/console-buffer.ts';
import { DebugExit } from '../../../src/vmm/devices/debug-exit.ts';
import { Serial16550 } from '../../../src/vmm/devices/serial-16550.ts';

function setUp() {
  const sent: number[] = [];
  return { serial: new Serial16550({ transmit: (byte) => sent.push(byte) }), sent };
}

describe('a 16550 serial port', () => {
  it('sends each byte at once and always says that it can take another', () => {
    const { serial, sent } = setUp();
    expect(serial.read(5)).toBe(0x60);
    serial.write(0, 0x41);
    expect([sent, serial.read(5)]).toEqual([[0x41], 0x60]);
  });

  it('keeps the divisor apart from data and interrupt enable: LCR.DLAB chooses', () => {
    const { serial, sent } = setUp();
    serial.write(1, 0x05);
    serial.write(3, 0x83);
    serial.write(0, 0x01);
    serial.write(1, 0x02);
    expect([serial.read(0), serial.read(1), serial.read(3)]).toEqual([0x01, 0x02, 0x83]);
    serial.write(3, 0x03);
    expect(serial.read(1)).toBe(0x05);
    expect(sent).toEqual([]);
  });

  it.each([
    ['IER', 1, 0xff, 0x0f],
    ['LCR', 3, 0x1b, 0x1b],
    ['MCR', 4, 0xff, 0x1f],
    ['scratch', 7, 0xa5, 0xa5],
    ['LSR is read-only', 5, 0x00, 0x60],
    ['MSR is read-only', 6, 0x00, 0xb0],
  ])('%s holds what it has bits for', (_, offset, written, read) => {
    const { serial } = setUp();
    serial.write(offset, written);
    expect(serial.read(offset)).toBe(read);
  });

  it('identifies itself as a 16550A while its FIFO is on', () => {
    const { serial } = setUp();
    expect(serial.read(2)).toBe(0x01);
    serial.write(2, 0x07);
    expect(serial.read(2)).toBe(0xc1);
    serial.write(2, 0x00);
    expect(serial.read(2)).toBe(0x01);
  });

  it('names the most urgent reason: received data before an empty transmitter, which is named once', () => {
    const { serial } = setUp();
    serial.write(1, 0x03);
    serial.receive(0x78);
    expect(serial.read(2)).toBe(0x04);
    expect(serial.read(5)).toBe(0x61);
    expect(serial.read(0)).toBe(0x78);
    expect([serial.read(2), serial.read(2)]).toEqual([0x02, 0x01]);
    serial.write(0, 0x41);
    expect([serial.read(2), serial.read(2)]).toEqual([0x02, 0x01]);
  });

  it('holds one byte without FIFO and 16 with it; what finds no room is an overrun, reported once', () => {
    const { serial } = setUp();
    serial.receive(1);
    serial.receive(2);
    expect([serial.read(5), serial.read(5), serial.read(0), serial.read(5)]).toEqual([0x63, 0x61, 1, 0x60]);
    serial.write(2, 0x01);
    for (let byte = 0; byte < 17; byte++) serial.receive(byte);
    expect(serial.read(5)).toBe(0x63);
    const received = Array.from({ length: 17 }, () => serial.read(0));
    expect(received).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0]);
  });

  it('clears its receiver when told to', () => {
    const { serial } = setUp();
    serial.write(2, 0x01);
    serial.receive(1);
    serial.write(2, 0x03);
    expect(serial.read(5)).toBe(0x60);
  });

  it('loops back: bytes and modem lines come in again, and nothing goes out', () => {
    const { serial, sent } = setUp();
    serial.write(4, 0x10);
    serial.write(0, 0x5a);
    expect([serial.read(0), sent]).toEqual([0x5a, []]);
    serial.read(6);
    serial.write(4, 0x1a);
    expect(serial.read(6)).toBe(0x99);
    expect(serial.read(6)).toBe(0x90);
  });
});

it('the console hands on whole lines, what fills its buffer, and the rest when told to', () => {
  const lines: string[] = [];
  const buffer = new ConsoleBuffer((bytes) => lines.push(new TextDecoder().decode(bytes)));
  const put = (text: string) => {
    for (const byte of new TextEncoder().encode(text)) buffer.put(byte);
  };
  put('one\ntwo\nthr');
  expect(lines).toEqual(['one\n', 'two\n']);
  buffer.flush();
  buffer.flush();
  expect(lines).toEqual(['one\n', 'two\n', 'thr']);
  put('x'.repeat(600));
  expect(lines.at(-1)).toBe('x'.repeat(512));
});

describe('the debug-exit port', () => {
  it.each([
    ['a byte', 0, 0x2a, 0x2a],
    ['zero', 0, 0, 0],
    ['the lowest byte of a word', 0, 0x1ff, 0xff],
    ['the lowest byte of a double word', 0, 0x80000005, 5],
    ['nothing beside it', 1, 5, -1],
  ])('takes %s', (_, offset, value, code) => {
    const port = new DebugExit();
    port.write(offset, value);
    expect(port.code).toBe(code);
    expect(port.read()).toBe(0);
  });
});

describe('the interrupt line of a 16550', () => {
  function wired() {
    const levels: number[] = [];
    const serial = new Serial16550({ transmit: () => {}, interrupt: (level) => levels.push(level) });
    return { serial, levels };
  }

  it('rises when the transmitter is empty and that is asked for, until somebody looks why', () => {
    const { serial, levels } = wired();
    serial.write(1, 2);
    expect(levels).toEqual([1]);
    expect(serial.read(2)).toBe(2);
    expect(levels).toEqual([1, 0]);
    serial.write(0, 0x41);
    expect(levels).toEqual([1, 0, 1]);
    serial.write(1, 0);
    expect(levels).toEqual([1, 0, 1, 0]);
  });

  it('is up while a received byte waits', () => {
    const { serial, levels } = wired();
    serial.receive(0x41);
    expect(levels).toEqual([]);
    serial.write(1, 1);
    serial.receive(0x42);
    expect(levels).toEqual([1]);
    serial.read(0);
    expect(levels).toEqual([1, 0]);
  });
});
