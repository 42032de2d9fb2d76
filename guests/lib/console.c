/* Console on the first serial port, and the debug-exit port. */
#include <stdarg.h>

#include "guest.h"

u64 ram_top;

void putc(char c) { outb(0x3f8, (u8)c); }

void puts(const char *text) {
    while (*text) putc(*text++);
    putc('\n');
}

void exit(int code) {
    outb(0xf4, (u8)code);
    park();
}

static void number(u64 value, unsigned base, unsigned width, char padding) {
    char digits[20];
    unsigned count = 0;
    do {
        digits[count++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value != 0);
    while (count < width && count < sizeof digits) digits[count++] = padding;
    while (count > 0) putc(digits[--count]);
}

void printf(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    for (; *format; format++) {
        if (*format != '%') {
            putc(*format);
            continue;
        }
        format++;
        char padding = *format == '0' ? '0' : ' ';
        unsigned width = 0;
        int is_long = 0;
        while (*format >= '0' && *format <= '9') width = width * 10 + (unsigned)(*format++ - '0');
        if (*format == 'l') {
            is_long = 1;
            format++;
        }
        switch (*format) {
            case 's': {
                const char *text = va_arg(arguments, const char *);
                while (*text) putc(*text++);
                break;
            }
            case 'c':
                putc((char)va_arg(arguments, int));
                break;
            case 'd': {
                s64 value = is_long ? va_arg(arguments, s64) : va_arg(arguments, int);
                if (value < 0) putc('-');
                number(value < 0 ? -(u64)value : (u64)value, 10, width, padding);
                break;
            }
            case 'u':
            case 'x':
                number(is_long ? va_arg(arguments, u64) : va_arg(arguments, u32), *format == 'x' ? 16 : 10, width, padding);
                break;
            default:
                putc(*format);
        }
    }
    va_end(arguments);
}
