import { verify } from 'node:crypto';
import { describe, expect, it } from 'vitest';
import { SigningKey } from '../../../src/hardware/chip.ts';

const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');
/** The key of RFC 6979, A.2.6. */
const KEY = Buffer.from(
  '6b9d3dad2e1b8c1c05b19875b6659f4de23c3b667bf297ba9aa47740787137d896d5724e4c70a825f872c9ea60d2edf5',
  'hex',
);

describe('keys that sign', () => {
  it('has the public point of RFC 6979 A.2.6', () => {
    expect(hex(new SigningKey(KEY, 'random').publicPoint)).toBe(
      '04ec3a4e415b4e19a4568618029f427fa5da9a8bc4ae92e02e06aae5286b300c64def8f0ea9055866064a254515480bc13' +
        '8015d9b72d7d57244ea8ef9ac0c621896708a59367f9dfb9f54ca84b3f1c9db1288b231c3ae0d4fe7344fd2533264720',
    );
  });

  it('signs as RFC 6979 A.2.6 says', () => {
    const key = new SigningKey(KEY, 'rfc6979');
    expect(hex(key.sign(Buffer.from('sample')))).toBe(
      '94edbb92a5ecb8aad4736e56c691916b3f88140666ce9fa73d64c4ea95ad133c81a648152e44acf96e36dd1e80fabe46' +
        '99ef4aeb15f178cea1fe40db2603138f130e740a19624526203b6351d0a3a94fa329c145786e679e7b82c71a38628ac8',
    );
    expect(hex(key.sign(Buffer.from('test')))).toBe(
      '8203b63d3c853e8d77227fb377bcf7b7b772e97892a80f36ab775d509d7a5feb0542a7f0812998da8f1dd3ca3cf023db' +
        'ddd0760448d42d8a43af45af836fce4de8be06b485e9b61b827c2f13173923e06a739f040649a667bf3b828246baa5a5',
    );
  });

  it.each(['random', 'rfc6979'] as const)('makes %s signatures that node:crypto verifies', (mode) => {
    const key = new SigningKey(KEY, mode);
    for (let i = 0; i < 20; i++) {
      const message = new Uint8Array(100).fill(i);
      const signature = key.sign(message);
      expect(signature.length).toBe(96);
      expect(verify('sha384', message, { key: key.publicKey, dsaEncoding: 'ieee-p1363' }, signature)).toBe(
        true,
      );
    }
  });

  it('repeats itself only by RFC 6979', () => {
    const message = new Uint8Array(1);
    const twice = (mode: 'random' | 'rfc6979') => {
      const key = new SigningKey(KEY, mode);
      const [first, second] = [key.sign(message), key.sign(message)];
      return hex(first) === hex(second);
    };
    expect(twice('rfc6979')).toBe(true);
    expect(twice('random')).toBe(false);
  });
});
